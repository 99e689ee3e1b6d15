// SPDX-License-Identifier: Apache-2.0
// Checkpoints with a reference on GPUs, alone and beside CPU ranks. Where there is none it runs on
// the emulation (tests/support/cuda_emulation), as a program of its own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_device.h"
#include "tests/support/golden.h"
#include "worker/comm/local.h"
#include "worker/model/family.h"
#include "worker/stage.h"

namespace trireme {
namespace {

constexpr DeviceKind kGpu = DEVICE_KIND_CUDA;
constexpr DeviceKind kCpu = DEVICE_KIND_CPU;

struct Case {
  std::string checkpoint;
  std::string dtype;
  int tp;
  int pp;
  std::vector<DeviceKind> devices;
};

void PrintTo(const Case& param, std::ostream* out) { *out << param.checkpoint; }

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const Case& param = info.param;
  std::string name = param.checkpoint + "_" + param.dtype + "_tp" + std::to_string(param.tp) +
                     "_pp" + std::to_string(param.pp);
  for (const DeviceKind kind : param.devices) name += kind == kGpu ? "_gpu" : "_cpu";
  for (char& letter : name) {
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
  }
  return name;
}

bool emulated() {
  const auto& devices = cuda_devices().devices;
  return !devices.empty() && devices[0].name == "emulated";
}

class GpuGolden : public testing::TestWithParam<Case> {};

// Prompts in chunks, beside others; the greedy tokens one by one.
TEST_P(GpuGolden, AsTheReference) {
  if (cuda_devices().devices.empty()) GTEST_SKIP() << "there is no GPU";
  const Case& param = GetParam();
  const auto path = find_checkpoint(param.checkpoint);
  if (!path) GTEST_SKIP() << param.checkpoint << " is neither in ../shared nor in tests/data";
  const ModelSpec model = read_model_spec(*path);
  const bool fp32 = param.dtype == "fp32";
  int compared = 0;
  for (const ReferencePrompt& prompt : read_reference(param.checkpoint)) {
    // Where the cache is fp32 the emulation takes seconds for as many keys.
    if (emulated() && param.dtype != "bf16" && prompt.prompt.size() > 200) continue;
    RankJobOptions options;
    options.model_path = *path;
    options.dtype = param.dtype;
    options.tp = param.tp;
    options.pp = param.pp;
    options.devices = param.devices;
    const auto length = static_cast<int32_t>(prompt.prompt.size());
    const Logits logits =
        run_local(options, make_script(model, forced_tokens(prompt), length, length > 20 ? 96 : 0,
                                       length > 200 ? 0 : 3));
    const double error = compare_logits(prompt, logits, fp32);
    compared += compare_greedy(prompt, logits, 4 * (fp32 ? kFp32Error : error));
  }
  EXPECT_GT(compared, 0) << "no greedy step could be compared";
}

TEST(GpuMemoryDeathTest, IsNotTheHosts) {
  if (cuda_devices().devices.empty()) GTEST_SKIP() << "there is no GPU";
  BackendOptions options;
  options.device = "cuda";
  const auto backend = make_backend(options);
  const Buffer buffer = backend->allocate(64);
  EXPECT_DEATH(*static_cast<volatile int*>(buffer.data()) = 1, "");
}

// After its largest steps a rank's scratch is what the plan predicted, to the byte.
TEST(GpuMemory, GrowsToWhatIsPredicted) {
  if (cuda_devices().devices.empty()) GTEST_SKIP() << "there is no GPU";
  for (const auto& [dtype, tokens] :
       {std::pair{"bf16", 40}, {"fp16", 40}, {"int8", 40}, {"int4", 40}, {"int4", 70}}) {
    RankJobOptions options;
    options.model_path = find_checkpoint("tiny-glm").value();
    options.dtype = dtype;
    options.devices = {kGpu};
    options.max_sequences = 3;
    options.max_batch_tokens = tokens;
    const Assign assign = make_assignments(options)[0];
    const auto backend = make_backend_of(assign);
    const auto checkpoint = Checkpoint::open(options.model_path);
    Cancellation cancellation;
    const auto transport = make_local_transport(make_local_hub(1), 1, cancellation);
    Stage stage(assign, *checkpoint, *backend, *transport, *transport, {});
    const uint64_t predicted =
        assign.placement().replicas(0).stages(0).shards(0).activation_bytes();
    EXPECT_LT(stage.activation_bytes(), predicted);
    stage.warm_up();
    EXPECT_EQ(stage.activation_bytes(), predicted) << dtype;
    stage.warm_up();
    EXPECT_EQ(stage.activation_bytes(), predicted) << dtype;
    EXPECT_EQ(stage.kv_bytes(), 0u) << "that of the warm-up is gone";
    const KvRoom room = stage.kv_room();
    const uint64_t planned = assign.placement().replicas(0).stages(0).shards(0).kv_bytes();
    EXPECT_EQ(room.num_blocks(), assign.placement().num_blocks()) << "a model so small fits";
    EXPECT_EQ(room.block_bytes() * static_cast<uint64_t>(room.num_blocks()), planned);
    EXPECT_GT(room.free_bytes(), room.kept_bytes());
    stage.allocate_cache(room.num_blocks());
    EXPECT_EQ(stage.kv_bytes(), planned);
    stage.record_steps();
    EXPECT_EQ(stage.activation_bytes(), predicted) << dtype;
  }
}

// ---- weights of int8 and int4 ----

Logits of_dtype(const std::string& checkpoint, const std::string& dtype, int tp, int pp) {
  RankJobOptions options;
  options.model_path = find_checkpoint(checkpoint).value();
  options.dtype = dtype;
  options.tp = tp;
  options.pp = pp;
  options.devices.assign(static_cast<size_t>(tp * pp), kGpu);
  const ModelSpec model = read_model_spec(options.model_path);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 78; ++i) tokens.push_back((i * i * 31 + 7 * i) % model.vocab_size());
  // The prompt as more rows than one kernel takes, then single ones beside others.
  return run_local(options, make_script(model, tokens, 70, 0, 3));
}

double relative_error(const Logits& found, const Logits& expected) {
  double square = 0, whole = 0;
  for (const auto& [key, row] : expected) {
    for (size_t i = 0; i < row.size(); ++i) {
      square += std::pow(double{found.at(key)[i]} - row[i], 2);
      whole += std::pow(double{row[i]}, 2);
    }
  }
  return std::sqrt(square / whole);
}

class GpuIntegers : public testing::TestWithParam<const char*> {};

// Near what bf16 gives, as far as integers can be; and the same at every split, since the scales
// are: those of parts alone would be as far from it as int4 is from bf16.
TEST_P(GpuIntegers, AreNearBf16AndTheSameAtSplits) {
  if (cuda_devices().devices.empty()) GTEST_SKIP() << "there is no GPU";
  constexpr double kInt8Error = 5e-2, kInt4Error = 0.7, kSplitError = 2e-2;
  const Logits bf16 = of_dtype(GetParam(), "bf16", 1, 1);
  const Logits int8 = of_dtype(GetParam(), "int8", 1, 1);
  const Logits int4 = of_dtype(GetParam(), "int4", 1, 1);
  EXPECT_LE(relative_error(int8, bf16), kInt8Error);
  EXPECT_LE(relative_error(int4, bf16), kInt4Error);
  EXPECT_GT(relative_error(int4, bf16), 2 * kSplitError) << "nothing is int4";
  for (const auto& [tp, pp] : {std::pair{2, 1}, {3, 1}, {1, 2}}) {
    EXPECT_LE(relative_error(of_dtype(GetParam(), "int4", tp, pp), int4), kSplitError)
        << "tp " << tp << ", pp " << pp;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GpuIntegers,
                         testing::Values("tiny-chatglm3", "tiny-llama3", "tiny-gemma3"),
                         [](const auto& row) {
                           std::string name = row.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(GpuIntegersBesideCpus, AreRefused) {
  RankJobOptions options;
  options.model_path = find_checkpoint("tiny-llama3").value();
  options.dtype = "int8";
  const std::vector<int32_t> tokens = {1, 2, 3};
  try {
    run_local(options, make_script(read_model_spec(options.model_path), tokens, 3, 0, 0));
    FAIL() << "a CPU has weights of int8";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    EXPECT_NE(std::string(error.what()).find("cannot keep weights of int8 on cpu"),
              std::string::npos)
        << error.what();
  }
}

// Every family on one GPU; one with few KV heads and one with windows at splits. The emulation is
// slow: it leaves out what differs from another in what the host computes alone, and has those in
// bf16 only that differ in its kernels.
std::vector<Case> all_cases() {
  const std::set<std::string> in_bf16 = {"tiny-chatglm3", "tiny-chatglm3-prefix",
                                         "tiny-gemma2",   "tiny-gemma3",
                                         "tiny-glm4",     "tiny-llama3"};
  const std::set<std::string> alike = {"tiny-chatglm3-fp16-sharded",
                                       "tiny-chatglm3-fp32",
                                       "tiny-chatglm3-prefix-mlp",
                                       "tiny-glm4-chat",
                                       "tiny-llama-linear",
                                       "tiny-llama-yarn",
                                       "tiny-llama3.1",
                                       "tiny-qwen2.5"};
  std::vector<Case> cases;
  for (const std::string& checkpoint : golden_checkpoints()) {
    if (!checkpoint.starts_with("tiny-")) continue;
    if (emulated() && alike.contains(checkpoint)) continue;
    cases.push_back({checkpoint, "fp32", 1, 1, {kGpu}});
    if (emulated() && !in_bf16.contains(checkpoint)) continue;
    cases.push_back({checkpoint, "bf16", 1, 1, {kGpu}});
  }
  for (const char* checkpoint : {"tiny-chatglm3", "tiny-gemma3"}) {
    cases.push_back({checkpoint, "fp16", 1, 1, {kGpu}});
    cases.push_back({checkpoint, "bf16", 2, 1, {kGpu, kGpu}});
    cases.push_back({checkpoint, "fp32", 1, 2, {kGpu, kCpu}});
    cases.push_back({checkpoint, "fp32", 1, 2, {kCpu, kGpu}});
    cases.push_back({checkpoint, "fp32", 2, 1, {kCpu, kGpu}});
    cases.push_back({checkpoint, "bf16", 2, 2, {kGpu, kCpu, kCpu, kGpu}});
  }
  cases.push_back({"tiny-chatglm3", "fp32", 3, 1, {kGpu, kGpu, kGpu}});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GpuGolden, testing::ValuesIn(all_cases()), case_name);

}  // namespace
}  // namespace trireme

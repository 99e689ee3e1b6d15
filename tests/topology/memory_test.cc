// SPDX-License-Identifier: Apache-2.0
#include "topology/memory.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>

#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "tests/support/models.h"
#include "topology/device_map.h"
#include "topology/shard.h"
#include "topology/worker_names.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

std::string refusal(const Topology& topology, const ModelSpec& model,
                    const PlacementOptions& options) {
  try {
    place_model("auto", topology, model, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kResourceExhausted) << error.what();
    return error.what();
  }
  return "it fits";
}

// Every "--flag value" of the sentence, applied to `options`; those of one alternative.
PlacementOptions applied(const std::string& alternative, PlacementOptions options) {
  static const std::regex pair("--([a-z_]+) ([0-9a-z]+)");
  for (std::sregex_iterator at(alternative.begin(), alternative.end(), pair), end; at != end;
       ++at) {
    const std::string name = (*at)[1];
    const std::string value = (*at)[2];
    if (name == "dtype") {
      options.dtype = parse_dtype(value).value();
      continue;
    }
    const int32_t number = std::stoi(value);
    if (name == "context") options.context = number;
    if (name == "max_sequences") options.max_sequences = number;
    if (name == "max_batch_tokens") options.max_batch_tokens = number;
    if (name == "tp") options.tp = number;
    if (name == "pp") options.pp = number;
    if (name == "dp") options.dp = number;
  }
  return options;
}

// What the message says that fits does, each alternative by itself; returns how many there are.
int check_alternatives(const std::string& message, const Topology& topology, const ModelSpec& model,
                       const PlacementOptions& options) {
  const size_t begin = message.find("; it fits with ");
  EXPECT_NE(begin, std::string::npos) << message;
  if (begin == std::string::npos) return 0;
  std::string rest = message.substr(begin + 15);
  int count = 0;
  for (size_t end = 0; end != std::string::npos; rest = rest.substr(end + 5)) {
    end = rest.find(", or ");
    const std::string alternative = rest.substr(0, end);
    EXPECT_NO_THROW(place_model("auto", topology, model, applied(alternative, options)))
        << alternative << " of: " << message;
    ++count;
    if (end == std::string::npos) break;
  }
  return count;
}

TEST(Memory, ARefusalNamesWhatFits) {
  const ModelSpec model = chatglm3();
  PlacementOptions options;
  options.pp = 1;
  options.dtype = DType::kBF16;
  options.context = 8192;
  options.max_sequences = 128;
  // A little less than the weights, one sequence and the buffers need.
  const Placement whole = plan_placement(make_topology(1, 64 * kGiB), model, options);
  const ShardSpec& shard = whole.replicas(0).stages(0).shards(0);
  const uint64_t needed = predicted_bytes(shard) + kReservedBytes - shard.kv_bytes() +
                          shard.kv_bytes() / static_cast<uint64_t>(whole.num_blocks()) * 512;
  const Topology topology = make_topology(1, needed - (20 << 20));
  const std::string message = refusal(topology, model, options);
  EXPECT_EQ(check_alternatives(message, topology, model, options), 3) << message;
}

TEST(Memory, OtherTypesAndDegreesAreTried) {
  const ModelSpec model = chatglm3();
  PlacementOptions options;
  options.context = 2048;
  options.max_sequences = 4;
  options.dtype = DType::kF32;
  std::string message = refusal(make_topology(1, 16 * kGiB), model, options);
  EXPECT_NE(message.find("--dtype bf16"), std::string::npos) << message;
  EXPECT_EQ(check_alternatives(message, make_topology(1, 16 * kGiB), model, options), 1);
  options.dtype = DType::kBF16;
  options.pp = options.tp = options.dp = 1;
  message = refusal(make_topology(2, 9 * kGiB), model, options);
  EXPECT_NE(message.find("--pp 2"), std::string::npos) << message;
  check_alternatives(message, make_topology(2, 9 * kGiB), model, options);
}

TEST(Memory, IntegersAreSmallerAndNeedGpus) {
  const ModelSpec model = chatglm3();
  PlacementOptions options;
  options.context = 2048;
  options.max_sequences = 4;
  options.dtype = DType::kBF16;
  Topology topology = make_topology(1, 12 * kGiB);
  topology.mutable_ranks(0)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  EXPECT_NE(refusal(topology, model, options), "it fits");
  options.weight_dtypes = layers_of(model, DType::kI4);
  const Placement placement = place_model("auto", topology, model, options);
  EXPECT_LT(placement.replicas(0).stages(0).shards(0).weight_bytes(), 5 * kGiB);
  EXPECT_EQ(dtype_summary(placement), "mixed bf16 int4");
  topology.mutable_ranks(0)->mutable_device()->set_kind(DEVICE_KIND_CPU);
  try {
    place_model("auto", topology, model, options);
    FAIL() << "a CPU has weights of int4";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    EXPECT_NE(std::string(error.what()).find("rank 1 on node is a CPU"), std::string::npos)
        << error.what();
  }
}

TEST(Memory, ElseMoreRanks) {
  PlacementOptions options;
  options.context = 2048;
  const std::string message = refusal(make_topology(1, 2 * kGiB), chatglm3(), options);
  EXPECT_NE(message.find("more ranks of as much memory"), std::string::npos) << message;
  EXPECT_NE(message.find("mpirun -n "), std::string::npos) << message;
}

// A context that nobody asked for is what the memory holds.
TEST(Memory, TheContextIsLoweredUnlessAskedFor) {
  const Topology topology = make_topology(1, 12 * kGiB + kGiB / 8);
  PlacementOptions options;
  options.pp = 1;
  options.max_sequences = 1;
  const Placement placement = place_model("auto", topology, chatglm3(), options);
  EXPECT_LT(placement.context(), 8192);
  EXPECT_GE(placement.context(), 256);
  EXPECT_EQ(placement.num_blocks() * placement.block_size(), placement.context());
  EXPECT_LE(predicted_bytes(placement.replicas(0).stages(0).shards(0)) + kReservedBytes,
            12 * kGiB + kGiB / 8);
}

TEST(Memory, NothingIsOverWhatIsThere) {
  for (const uint64_t memory : {uint64_t{5} * kGiB, uint64_t{7} * kGiB, uint64_t{64} * kGiB}) {
    for (const int workers : {2, 3, 4}) {
      const Topology topology = make_topology(workers, memory);
      Placement placement;
      try {
        placement = place_model("auto", topology, chatglm3(), {});
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::kResourceExhausted);
        continue;
      }
      for (const ReplicaSpec& replica : placement.replicas()) {
        for (const StageSpec& stage : replica.stages()) {
          for (const ShardSpec& shard : stage.shards())
            EXPECT_LE(predicted_bytes(shard) + kReservedBytes, memory);
        }
      }
    }
  }
}

TEST(Memory, APlacementFileIsToldItsBlocks) {
  const Topology roomy = make_topology(1, 64 * kGiB);
  Placement placement = place_model("auto", roomy, chatglm3(), {});
  try {
    check_memory(make_topology(1, 14 * kGiB), placement);
    FAIL() << "it does not fit";
  } catch (const Error& error) {
    const std::string message = error.what();
    static const std::regex said("num_blocks ([0-9]+) would fit");
    std::smatch match;
    ASSERT_TRUE(std::regex_search(message, match, said)) << message;
    placement.set_num_blocks(std::stoi(match[1]));
    predict_bytes(chatglm3(), placement);
    EXPECT_NO_THROW(check_memory(make_topology(1, 14 * kGiB), placement));
  }
}

// ---- names of workers ----

TEST(WorkerNames, AreIndicesHostsAndCpu) {
  Topology topology = make_topology(3, kGiB);
  topology.mutable_ranks(2)->set_host("other");
  topology.mutable_ranks(2)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  PlacementOptions options;
  options.max_memory_bytes = {{"cpu", 5}, {"other:0", 7}, {"1", 3}};
  EXPECT_NO_THROW(check_memory_keys(topology, options));
  EXPECT_EQ(memory_of(topology, 0, options), 5u);
  EXPECT_EQ(memory_of(topology, 1, options), 3u);
  EXPECT_EQ(memory_of(topology, 2, options), 7u);
  EXPECT_TRUE(is_called(topology, 1, "cuda:1"));
  EXPECT_TRUE(is_called(topology, 1, "node:1"));
  EXPECT_FALSE(is_called(topology, 0, "node:1"));
  for (const char* wrong :
       {"3", "-1", "node:2", "other:1", "gpu", "", "1x", "99999999999999999999"}) {
    options.max_memory_bytes = {{wrong, 1}};
    EXPECT_THROW(check_memory_keys(topology, options), Error) << wrong;
    for (const int worker : {0, 1, 2}) EXPECT_FALSE(is_called(topology, worker, wrong)) << wrong;
  }
}

// ---- staging ----

TEST(Staging, IsCountedForEveryKindOfMessage) {
  const ModelSpec model = smollm2();
  PlacementOptions options;
  options.tp = 2;
  options.pp = 2;
  options.dp = 1;
  const Placement placement = plan_placement(make_topology(4, 16 * kGiB), model, options);
  const ReplicaSpec& replica = placement.replicas(0);
  const size_t row = 576 * 4;
  const StagingBytes none = edge_staging(model, replica, 0, 1, placement, -1);
  EXPECT_EQ(none.incoming + none.outbox, 0u);
  const StagingBytes first = edge_staging(model, replica, 0, 1, placement, 1);
  EXPECT_EQ(first.incoming, 0u);
  EXPECT_EQ(first.outbox, 512 * row);
  EXPECT_EQ(edge_staging(model, replica, 1, 1, placement, 0).incoming, 512 * row);
  EXPECT_EQ(edge_staging(model, replica, 1, 1, placement, 0).outbox, 0u);
  const StagingBytes beyond = edge_staging(model, replica, 1, 1, placement, 2);
  EXPECT_EQ(beyond.incoming + beyond.outbox, 0u);
  EXPECT_EQ(group_staging(model, replica, 0, 0, placement).outgoing, 512 * row);
  // The logits of 32 sequences are more than what is summed.
  EXPECT_EQ(group_staging(model, replica, 1, 0, placement).incoming, size_t{32} * 49152 * 4);
  EXPECT_GT(replica.stages(1).shards(0).communication_bytes(), size_t{32} * 49152 * 4);
}

// Stages of `at` layers and of the rest.
Placement two_stages(const ModelSpec& model, int32_t at, int first_rank, int second_rank) {
  Placement placement;
  ReplicaSpec& replica = *placement.add_replicas();
  for (const int stage : {0, 1}) {
    StageSpec& spec = *replica.add_stages();
    spec.mutable_layers()->set_begin(stage == 0 ? 0 : at);
    spec.mutable_layers()->set_end(stage == 0 ? at : model.num_layers());
    spec.set_has_embedding(stage == 0);
    spec.set_has_head(stage == 1);
    ShardSpec& shard = *spec.add_shards() = make_shard(model, 0, 1);
    shard.set_rank(stage == 0 ? first_rank : second_rank);
  }
  return placement;
}

// What the search takes to fit does: a GPU has scratch beside its layers, the more with the head.
TEST(Placement, OfGpusWithLittleMemory) {
  const ModelSpec model = smollm2();
  PlacementOptions options;
  options.tp = options.dp = 1;
  options.pp = 2;
  options.context = 8192;
  Topology topology = make_topology(2, 16 * kGiB);
  for (RankInfo& rank : *topology.mutable_ranks()) {
    rank.mutable_device()->set_kind(DEVICE_KIND_CUDA);
  }
  int fitting = 0;
  // Some 2.2 GB of which are not for the model.
  for (uint64_t memory = 2'200'000'000; memory <= 2'600'000'000; memory += 8'000'000) {
    topology.mutable_ranks(0)->mutable_device()->set_memory_bytes(memory);
    const auto fits = [&](int32_t at, int first, int second) {
      Placement placement = two_stages(model, at, first, second);
      set_limits(model, options, placement);
      try {
        size_kv_cache(topology, model, options, placement);
      } catch (const Error&) {
        return false;
      }
      return true;
    };
    bool any = false;
    for (int32_t at = 1; at < model.num_layers() && !any; ++at) {
      any = fits(at, 1, 2) || fits(at, 2, 1);
    }
    if (!any) continue;
    ++fitting;
    EXPECT_NO_THROW(plan_placement(topology, model, options)) << memory;
  }
  EXPECT_GT(fitting, 10);
}

// They do not count as a GPU's, whose memory may be smaller than the host's.
TEST(Staging, OfAGpuHasCopiesOnTheHost) {
  const ModelSpec model = smollm2();
  PlacementOptions options;
  options.tp = 2;
  options.pp = 2;
  options.dp = 1;
  const Topology cpus = make_topology(4, 16 * kGiB);
  Placement placement = plan_placement(cpus, model, options);
  const Placement before = placement;
  Topology topology = cpus;
  const int gpu = placement.replicas(0).stages(1).shards(0).rank();
  topology.mutable_ranks(gpu - 1)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  set_devices(topology, placement);
  predict_bytes(model, placement);
  const size_t tensor = 512 * 576 * 4, logits = size_t{32} * 49152 * 4;
  const StagingBytes group = group_staging(model, placement.replicas(0), 1, 0, placement);
  // Its part of the logits is more than the activations.
  EXPECT_EQ(group.copy, logits / 2);
  EXPECT_EQ(group.gathered, logits);
  EXPECT_EQ(edge_staging(model, placement.replicas(0), 1, 0, placement, 0).copy, tensor);
  for (int stage = 0; stage < 2; ++stage) {
    for (int rank = 0; rank < 2; ++rank) {
      const uint64_t was = before.replicas(0).stages(stage).shards(rank).communication_bytes();
      const uint64_t is = placement.replicas(0).stages(stage).shards(rank).communication_bytes();
      EXPECT_EQ(is, stage == 1 && rank == 0 ? 0 : was);
    }
  }
}

TEST(Staging, OfGpusAloneHasMemoryForTheirSums) {
  const ModelSpec model = smollm2();
  PlacementOptions options;
  options.tp = 3;
  options.pp = 1;
  options.dp = 1;
  Topology topology = make_topology(3, 16 * kGiB);
  Placement placement = plan_placement(topology, model, options);
  const auto peers = [&] {
    set_devices(topology, placement);
    return group_staging(model, placement.replicas(0), 0, 0, placement).peers;
  };
  for (const int rank : {0, 1}) {
    topology.mutable_ranks(rank)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  }
  EXPECT_EQ(peers(), 0u);
  topology.mutable_ranks(2)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  EXPECT_EQ(peers(), size_t{12} << 20);
  // By NCCL the first rank gathers the logits in its GPU's memory.
  predict_bytes(model, placement);
  const auto messages = [&](int rank) {
    return placement.replicas(0).stages(0).shards(rank).communication_bytes();
  };
  EXPECT_EQ(messages(0), (size_t{12} << 20) + size_t{32} * 49152 * 4);
  EXPECT_EQ(messages(1), size_t{12} << 20);
  EXPECT_EQ(peer_memory_bytes(1), 0);
  EXPECT_EQ(peer_memory_bytes(9), 0);
}

}  // namespace
}  // namespace trireme

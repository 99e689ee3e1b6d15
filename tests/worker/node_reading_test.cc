// SPDX-License-Identifier: Apache-2.0
// Ranks of a node that read a checkpoint together: what each gets is what it would have read alone,
// and each byte is read once.
#include "worker/model/node_reading.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "kernels/backend.h"
#include "tests/worker/model_files.h"
#include "topology/shard.h"
#include "worker/comm/local.h"
#include "worker/digest.h"
#include "worker/model/family.h"
#include "worker/model/weights.h"

namespace trireme {
namespace {

struct Share {
  StageSpec stage;
  ShardSpec shard;
};

// dp replicas of `pp` stages of `tp` ranks, all on this node but those of the last `elsewhere`.
std::vector<Share> make_shares(const ModelSpec& model, int tp, int pp, int dp, int elsewhere = 0) {
  std::vector<Share> shares;
  for (int replica = 0; replica < dp; ++replica) {
    for (int stage = 0; stage < pp; ++stage) {
      for (int rank = 0; rank < tp; ++rank) {
        Share share;
        share.stage.mutable_layers()->set_begin(model.num_layers() * stage / pp);
        share.stage.mutable_layers()->set_end(model.num_layers() * (stage + 1) / pp);
        share.stage.set_has_embedding(stage == 0);
        share.stage.set_has_head(stage + 1 == pp);
        share.shard = make_shard(model, rank, tp);
        shares.push_back(share);
      }
    }
  }
  shares.resize(shares.size() - static_cast<size_t>(elsewhere));
  return shares;
}

std::vector<ReadPlan::Member> members_of(const std::vector<Share>& shares) {
  std::vector<ReadPlan::Member> members;
  for (const Share& share : shares) members.push_back({&share.stage, &share.shard});
  return members;
}

Placement placement_of(DType dtype) {
  Placement placement;
  placement.set_dtype(dtype_name(dtype));
  return placement;
}

std::string bytes_of(const Buffer& buffer) {
  return {static_cast<const char*>(buffer.data()), buffer.bytes()};
}

// Everything that was loaded, in one order.
std::vector<std::string> contents(const Weights& weights) {
  std::vector<std::string> all = {bytes_of(weights.embedding.storage), bytes_of(weights.final_norm),
                                  bytes_of(weights.head.storage)};
  for (const LayerWeights& layer : weights.layers) {
    for (const Weight* matrix : {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down}) {
      all.push_back(bytes_of(matrix->storage));
    }
    for (const Buffer* vector :
         {&layer.attention_norm, &layer.qkv_bias, &layer.q_norm, &layer.k_norm,
          &layer.attention_out_bias, &layer.post_attention_norm, &layer.mlp_norm,
          &layer.gate_up_bias, &layer.down_bias, &layer.post_mlp_norm, &layer.prefix}) {
      all.push_back(bytes_of(*vector));
    }
  }
  return all;
}

struct Loaded {
  Weights weights;
  uint64_t bytes_read = 0;
  uint64_t last_progress = 0;
};

// The ranks as threads.
std::vector<Loaded> load_together(const std::string& path, const ModelSpec& model,
                                  const std::vector<Share>& shares, bool everything) {
  const int count = static_cast<int>(shares.size());
  std::vector<int> ranks;
  for (int rank = 1; rank <= count; ++rank) ranks.push_back(rank);
  const auto hub = make_local_hub(count);
  std::vector<Cancellation> cancellations(shares.size());
  std::vector<Loaded> loaded(shares.size());
  {
    std::vector<std::jthread> threads;
    for (int member = 0; member < count; ++member) {
      threads.emplace_back([&, member] {
        const auto transport = make_local_transport(hub, member + 1, cancellations[member]);
        const auto group = transport->make_group(ranks, 7);
        const auto checkpoint = Checkpoint::open(path);
        const auto backend = make_backend({.device = "cpu", .threads = 1, .isa = "auto"});
        const ReadPlan plan(model, members_of(shares), *checkpoint, everything);
        Loaded& mine = loaded[static_cast<size_t>(member)];
        mine.weights =
            load_weights(model, placement_of(DType::kF32), plan, member, group.get(), *checkpoint,
                         *backend, [&](uint64_t done) { mine.last_progress = done; });
        mine.bytes_read = checkpoint->bytes_read();
        EXPECT_EQ(mine.last_progress, plan.work_bytes(member));
        EXPECT_EQ(mine.weights.node_bytes, plan.read_bytes());
      });
    }
  }
  return loaded;
}

// Bytes that at least one share needs, counted one unit at a time.
uint64_t bytes_needed(const ModelSpec& model, const std::vector<Share>& shares,
                      const Checkpoint& checkpoint) {
  std::map<const TensorInfo*, std::set<int64_t>> units;
  for (const Share& share : shares) {
    for (const Want& want : wanted(model, share.stage, share.shard, checkpoint)) {
      const Units range = units_of(want.slice);
      for (int64_t unit = range.begin; unit < range.end(); ++unit) {
        units[want.slice.tensor].insert(unit);
      }
    }
  }
  uint64_t bytes = 0;
  for (const auto& [tensor, needed] : units) bytes += needed.size() * tensor->unit_bytes();
  return bytes;
}

struct Split {
  const char* model;
  int tp, pp, dp, elsewhere;
};

class ReadTogether : public testing::TestWithParam<Split> {};

TEST_P(ReadTogether, EachByteOnceAndTheSameWeights) {
  const auto [name, tp, pp, dp, elsewhere] = GetParam();
  const std::string path = test_data(name);
  const ModelSpec model = read_model_spec(path);
  const std::vector<Share> shares = make_shares(model, tp, pp, dp, elsewhere);
  const auto checkpoint = Checkpoint::open(path);
  const uint64_t needed = bytes_needed(model, shares, *checkpoint);

  const std::vector<Loaded> loaded = load_together(path, model, shares, false);
  uint64_t read = 0;
  for (const Loaded& rank : loaded) read += rank.bytes_read;
  EXPECT_EQ(read, needed);
  EXPECT_EQ(loaded[0].weights.node_bytes, needed);
  const auto backend = make_backend({.device = "cpu", .threads = 1, .isa = "auto"});
  for (size_t member = 0; member < shares.size(); ++member) {
    const Weights alone = load_weights(model, shares[member].stage, shares[member].shard,
                                       placement_of(DType::kF32), *checkpoint, *backend, {});
    EXPECT_EQ(contents(loaded[member].weights), contents(alone)) << "member " << member;
    EXPECT_EQ(loaded[member].weights.bytes, alone.bytes);
    EXPECT_EQ(loaded[member].weights.digests.digests_size(), 0);
  }
}

TEST_P(ReadTogether, EverythingOnceAndDigested) {
  const auto [name, tp, pp, dp, elsewhere] = GetParam();
  const std::string path = test_data(name);
  const ModelSpec model = read_model_spec(path);
  const auto checkpoint = Checkpoint::open(path);
  const std::vector<Share> shares = make_shares(model, tp, pp, dp, elsewhere);
  const std::vector<Loaded> loaded = load_together(path, model, shares, true);
  std::map<std::string, TensorDigest> digests;
  uint64_t read = 0;
  for (const Loaded& rank : loaded) {
    read += rank.bytes_read;
    for (const TensorDigest& digest : rank.weights.digests.digests()) {
      EXPECT_TRUE(digests.emplace(digest.tensor(), digest).second) << "digested by two ranks";
    }
  }
  EXPECT_EQ(read, checkpoint->total_bytes());
  EXPECT_EQ(digests.size(), checkpoint->tensors().size());
  for (const TensorInfo* tensor : checkpoint->tensors()) {
    std::vector<std::byte> bytes(tensor->bytes);
    checkpoint->fetch(*tensor, 0, bytes);
    EXPECT_EQ(digests[tensor->name].sha256(), sha256(bytes)) << tensor->name;
    EXPECT_EQ(digests[tensor->name].bytes(), tensor->bytes);
    EXPECT_TRUE(checkpoint->file_of(*tensor).ends_with("/" + digests[tensor->name].file()) ||
                checkpoint->file_of(*tensor) == digests[tensor->name].file());
  }
  const auto backend = make_backend({.device = "cpu", .threads = 1, .isa = "auto"});
  const Weights alone = load_weights(model, shares[0].stage, shares[0].shard,
                                     placement_of(DType::kF32), *checkpoint, *backend, {});
  EXPECT_EQ(contents(loaded[0].weights), contents(alone));
}

INSTANTIATE_TEST_SUITE_P(
    Splits, ReadTogether,
    testing::Values(Split{"tiny-llama3", 2, 1, 1, 0}, Split{"tiny-llama3", 2, 2, 1, 2},
                    Split{"tiny-llama3", 1, 1, 2, 0}, Split{"tiny-chatglm3", 2, 1, 2, 1},
                    Split{"tiny-chatglm3", 1, 3, 1, 0}, Split{"tiny-chatglm3", 3, 1, 1, 1},
                    Split{"tiny-chatglm3-fp16-sharded", 2, 2, 1, 0},
                    Split{"tiny-chatglm3-prefix-mlp", 2, 2, 1, 0},
                    Split{"tiny-chatglm3-prefix", 1, 2, 2, 0}, Split{"tiny-llama-bias", 2, 1, 1, 0},
                    Split{"tiny-qwen2", 3, 1, 1, 0}, Split{"tiny-gemma3", 1, 2, 1, 0},
                    Split{"gguf/tiny-llama3.gguf", 2, 2, 1, 0},
                    Split{"gguf/tiny-chatglm3.gguf", 3, 1, 1, 0}),
    [](const auto& row) {
      std::string name = row.param.model;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      return name + "_tp" + std::to_string(row.param.tp) + "_pp" + std::to_string(row.param.pp) +
             "_dp" + std::to_string(row.param.dp) + "_without" +
             std::to_string(row.param.elsewhere);
    });

// A rank that is gone must not hold the others: their wait can be abandoned.
TEST(ReadTogetherAlone, IsAbandonedWithTheRank) {
  const std::string path = test_data("tiny-llama3");
  const ModelSpec model = read_model_spec(path);
  const std::vector<Share> shares = make_shares(model, 2, 1, 1);
  const auto hub = make_local_hub(2);
  Cancellation cancellation;
  const auto transport = make_local_transport(hub, 1, cancellation);
  const auto group = transport->make_group(std::vector<int>{1, 2}, 7);
  const auto checkpoint = Checkpoint::open(path);
  const auto backend = make_backend({.device = "cpu", .threads = 1, .isa = "auto"});
  const ReadPlan plan(model, members_of(shares), *checkpoint, false);
  std::jthread abandon([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    cancellation.cancel("rank 2 is gone");
  });
  expect_error(Code::kCancelled, "rank 2 is gone", [&] {
    load_weights(model, placement_of(DType::kF32), plan, 0, group.get(), *checkpoint, *backend, {});
  });
}

TEST(ReadTogetherAlone, SaysWhichFileBecameShorter) {
  const TemporaryFolder folder;
  std::filesystem::copy(test_data("tiny-llama3"), folder.path());
  const ModelSpec model = read_model_spec(folder.path());
  const auto checkpoint = Checkpoint::open(folder.path());
  const std::string file = folder.path() + "/model.safetensors";
  std::filesystem::permissions(file, std::filesystem::perms::owner_all);
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  const auto backend = make_backend({.device = "cpu", .threads = 1, .isa = "auto"});
  const std::vector<Share> shares = make_shares(model, 1, 1, 1);
  expect_error(Code::kFailedPrecondition, "model.safetensors: it became shorter", [&] {
    load_weights(model, shares[0].stage, shares[0].shard, placement_of(DType::kF32), *checkpoint,
                 *backend, {});
  });
}

}  // namespace
}  // namespace trireme

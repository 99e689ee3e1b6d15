// SPDX-License-Identifier: Apache-2.0
// Steps that sum by NCCL, recorded and replayed: over the library that stands for it, which makes
// its operations part of the graph as NCCL's threads do, and emulated GPUs, whose graphs run while
// the host goes on. Ranks are threads.
#include <atomic>

#include "tests/support/cuda_emulation/graphs.h"
#include "tests/support/rank_job.h"
#include "tests/support/reference.h"
#include "tests/worker/nccl/ranks.h"
#include "worker/comm/local.h"
#include "worker/stage.h"

namespace trireme {
namespace {

using cuda::emulation::num_replays;

constexpr uint64_t kKey = 7;
// What ends at once ends within it on a busy machine; what hangs the fake leaves after 5 s.
constexpr std::chrono::seconds kSoon{2};

// Values on the device of a rank.
class DeviceFloats {
 public:
  DeviceFloats(Backend& backend, int64_t count)
      : backend_(backend),
        values_(static_cast<size_t>(count)),
        buffer_(backend.allocate(values_.size() * sizeof(float))) {}
  Tensor tensor() const { return {buffer_.data(), DType::kF32, 1, std::ssize(values_)}; }
  void fill(float first) {
    std::iota(values_.begin(), values_.end(), first);
    backend_.upload(buffer_.data(), values_.data(), buffer_.bytes());
  }
  // factor · (first, first + 1, …)
  void expect(float first, float factor) {
    backend_.download(values_.data(), buffer_.data(), buffer_.bytes());
    for (size_t i = 0; i < values_.size(); ++i) {
      ASSERT_EQ(values_[i], factor * (first + static_cast<float>(i))) << "value " << i;
    }
  }

 private:
  Backend& backend_;
  Floats values_;
  Buffer buffer_;
};

// Nothing that a test ends is held by a graph for ever.
class RecordedSums : public testing::Test {
 protected:
  ~RecordedSums() override { EXPECT_EQ(fake().num_stuck(), stuck_); }

  int64_t replays() const { return num_replays() - replays_; }

 private:
  const int stuck_ = fake().num_stuck();
  const int64_t replays_ = num_replays();
};

// What a rank does with a group: x = 2 · Σ x, twice.
struct Step {
  explicit Step(const NcclMember& m) : member(m), x(m.backend, 700) {}
  void operations() {
    ++asked;
    for (int time = 0; time < 2; ++time) {
      member.group.all_reduce_sum(x.tensor());
      member.backend.scale(x.tensor(), 2);
    }
  }
  void replay() {
    member.backend.replay(kKey, [this] { operations(); });
    member.group.replayed();
  }
  void replay_and_settle() {
    replay();
    member.group.settle();
  }

  NcclMember member;
  DeviceFloats x;
  int asked = 0;
};

// Others of the group follow at once, while the graph still runs.
TEST_F(RecordedSums, AreReplayed) {
  constexpr int kRanks = 3, kSteps = 6;
  run_ranks(kRanks, [](NcclMember m) {
    ASSERT_TRUE(m.group.can_record(int64_t{1} << 40));
    Step step(m);
    DeviceFloats more(m.backend, 5);
    for (int i = 0; i < kSteps; ++i) {
      step.x.fill(static_cast<float>(i));
      more.fill(static_cast<float>(m.group.rank()));
      step.replay();
      m.group.all_reduce_sum(more.tensor());
      m.group.settle();
      step.x.expect(static_cast<float>(i), 4 * kRanks * kRanks);
      more.expect(1, kRanks);
    }
    EXPECT_EQ(step.asked, 2) << "run once, recorded once";
  });
  EXPECT_EQ(replays(), kRanks * (kSteps - 1));
}

// As where one has grown its scratch and records anew, or cannot record.
TEST_F(RecordedSums, MeetThoseThatAreNot) {
  run_ranks(3, [](NcclMember m) {
    Step step(m);
    for (int i = 0; i < 5; ++i) {
      step.x.fill(static_cast<float>(i));
      if (m.group.rank() == 1) {
        step.operations();
        m.group.settle();
      } else {
        step.replay_and_settle();
      }
      step.x.expect(static_cast<float>(i), 36);
    }
  });
  EXPECT_EQ(replays(), 2 * 4);
}

TEST_F(RecordedSums, ADeadPeerEndsThem) {
  run_ranks(2, [](NcclMember m) {
    Step step(m);
    for (int i = 0; i < 3; ++i) step.replay_and_settle();
    if (m.group.rank() == 1) return;
    const auto delay = cancel_delay(m.cancellation, [&] { step.replay_and_settle(); });
    EXPECT_LE(delay, kSoon);
    EXPECT_EQ(code_of([&] { m.group.settle(); }, "has failed before"), Code::kCancelled);
  });
}

TEST_F(RecordedSums, AnErrorOfTheNetworkEndsThem) {
  constexpr int kRemoteError = 6;  // ncclRemoteError
  std::atomic<bool> gone{false};
  run_ranks(2, [&](NcclMember m) {
    Step step(m);
    for (int i = 0; i < 3; ++i) step.replay_and_settle();
    if (m.group.rank() == 1) {
      gone = true;
      return;
    }
    std::jthread other([&] {
      while (!gone || m.progress.waiting_for().empty()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      fake().set_error(kRemoteError);
    });
    EXPECT_EQ(code_of([&] { step.replay_and_settle(); }, "with NCCL"), Code::kUnavailable);
    fake().set_error(0);
    EXPECT_EQ(m.progress.waiting_for(), std::vector<int32_t>{2}) << "it says for whom it waited";
  });
}

// To wait for the end of one before the other is told would be to wait for ever.
TEST_F(RecordedSums, OfTwoGroupsEndTogether) {
  Keys keys;
  run_ranks(2, [&](NcclMember m) {
    const std::vector<int> ranks = {1, 2};
    if (m.group.rank() == 0) keys.give(1, m.nccl.make_key(), {});
    const auto other = m.nccl.make_group(ranks, m.group.rank(), keys.take(1));
    DeviceFloats x(m.backend, 10);
    const auto step = [&] {
      m.backend.replay(kKey, [&] {
        m.group.all_reduce_sum(x.tensor());
        other->all_reduce_sum(x.tensor());
      });
      m.group.replayed();
      m.group.settle();
    };
    for (int i = 0; i < 3; ++i) step();
    if (m.group.rank() == 1) return;
    EXPECT_LE(cancel_delay(m.cancellation, step), kSoon);
  });
}

// A call of NCCL's that is to become part of a recording, and does not.
TEST_F(RecordedSums, ACancelEndsTheRecording) {
  testing::internal::CaptureStderr();
  run_ranks(2, [](NcclMember m) {
    Step step(m);
    step.replay_and_settle();
    if (m.group.rank() == 1) return;
    fake().hold(true);
    EXPECT_LE(cancel_delay(m.cancellation, [&] { step.replay_and_settle(); }), kSoon);
    fake().hold(false);
    EXPECT_EQ(step.asked, 2) << "what has ended is not tried again";
    // The stream is no longer recorded, and others may be.
    DeviceFloats x(m.backend, 9);
    x.fill(1);
    for (int i = 0; i < 3; ++i) {
      m.backend.replay(kKey + 1, [&] { m.backend.scale(x.tensor(), 2); });
    }
    x.expect(1, 8);
  });
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(replays(), 2);
}

// Of one rank: its sums then meet the recorded ones of the other.
TEST_F(RecordedSums, AreRunWhereTheyCannotBeRecorded) {
  testing::internal::CaptureStderr();
  run_ranks(2, [](NcclMember m) {
    DeviceFloats x(m.backend, 100);
    for (int i = 0; i < 4; ++i) {
      x.fill(static_cast<float>(i));
      m.backend.replay(kKey, [&] {
        m.group.all_reduce_sum(x.tensor());
        if (m.group.rank() == 0) m.backend.synchronize();
        m.group.all_reduce_sum(x.tensor());
      });
      m.group.replayed();
      m.group.settle();
      x.expect(static_cast<float>(i), 4);
    }
  });
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("steps are not recorded as CUDA graphs from here on"), std::string::npos)
      << log;
  EXPECT_EQ(replays(), 3) << "of rank 1";
}

TEST_F(RecordedSums, NeedAnNcclThatCan) {
  fake().set_version(22602);
  testing::internal::CaptureStderr();
  run_ranks(2, [](NcclMember m) {
    for (int time = 0; time < 2; ++time) EXPECT_FALSE(m.group.can_record(4));
  });
  fake().set_version(22809);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("not recorded as CUDA graphs: that needs NCCL 2.27.3"), std::string::npos)
      << log;
  EXPECT_EQ(log.find("that needs"), log.rfind("that needs")) << "it is told once";
}

// ---- whole steps ----

constexpr int kSequences = 4, kPrompt = 5, kDecodes = 9;

// Prompts of some sequences, then steps of decode of one, two, three and four of them.
std::vector<MicroBatch> make_steps(const Assign& assign) {
  const Placement& placement = assign.placement();
  const int32_t own_blocks = placement.num_blocks() / kSequences;
  std::vector<int32_t> positions(kSequences, 0);
  std::vector<MicroBatch> steps;
  for (int number = 0; number <= kDecodes; ++number) {
    MicroBatch& batch = steps.emplace_back();
    batch.set_id(static_cast<uint64_t>(number) + 1);
    for (int s = 0; s < (number == 0 ? kSequences : (number - 1) % kSequences + 1); ++s) {
      int32_t& position = positions[static_cast<size_t>(s)];
      SequenceChunk& chunk = *batch.add_chunks();
      chunk.set_sequence(static_cast<uint64_t>(s) + 1);
      chunk.set_position(position);
      for (int i = 0; i < (number == 0 ? kPrompt + s : 1); ++i) {
        chunk.add_token_ids((s * 31 + position++ * 7) % assign.model().vocab_size());
      }
      for (int32_t block = 0; block * placement.block_size() < position; ++block) {
        chunk.add_block_table(s * own_blocks + block);
      }
      chunk.set_sample(true);
      chunk.mutable_draw()->set_top_p(1);
      chunk.mutable_draw()->set_logprobs(3);
    }
  }
  return steps;
}

std::vector<Assign> assignments(bool eager) {
  RankJobOptions options;
  options.model_path = find_checkpoint("tiny-llama3").value();
  options.tp = 2;
  options.devices = {DEVICE_KIND_CUDA, DEVICE_KIND_CUDA};
  options.max_sequences = kSequences;
  options.max_batch_tokens = 32;
  std::vector<Assign> assigns = make_assignments(options);
  for (Assign& assign : assigns) assign.set_enforce_eager(eager);
  return assigns;
}

using StageBody = std::function<void(Stage&, const Assign&, Cancellation&)>;

// On both ranks, whose sums go by NCCL alone.
void run_stages(bool eager, const StageBody& body) {
  set_nccl_variables({});
  const std::vector<Assign> assigns = assignments(eager);
  const auto hub = make_local_hub(2);
  Keys keys;
  std::vector<std::thread> threads;
  for (int rank = 1; rank <= 2; ++rank) {
    threads.emplace_back([&, rank] {
      const Assign& assign = assigns[static_cast<size_t>(rank) - 1];
      check_assignment(assign);
      const auto backend = make_backend_of(assign);
      const auto checkpoint = Checkpoint::open(find_checkpoint("tiny-llama3").value());
      Cancellation cancellation;
      DeviceTransportOptions options;
      options.rank = rank;
      options.gpu_ranks = gpu_ranks(assign.placement());
      options.nccl_ranks = options.gpu_ranks;
      options.peer_sums = PeerSums::kNever;
      options.keys = &keys;
      options.cancellation = &cancellation;
      options.progress = std::make_shared<Progress>();
      options.nccl = kOptions;
      const auto host = make_local_transport(hub, rank, cancellation);
      const auto tensors = make_device_transport(*host, *backend, options);
      Stage stage(assign, *checkpoint, *backend, *host, *tensors, {});
      stage.allocate_cache(assign.placement().num_blocks());
      stage.record_steps();
      body(stage, assign, cancellation);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// What the reporter hands on.
std::vector<std::string> results(bool eager) {
  std::vector<std::string> results;
  run_stages(eager, [&](Stage& stage, const Assign& assign, Cancellation&) {
    for (const MicroBatch& batch : make_steps(assign)) {
      const MicroBatchResult result = stage.run(batch);
      if (!stage.reporter()) continue;
      EXPECT_EQ(result.tokens_size(), batch.chunks_size());
      for (const SampledToken& token : result.tokens()) EXPECT_EQ(token.logprobs_size(), 3);
      results.push_back(result.SerializeAsString());
    }
  });
  return results;
}

// Tokens, and the bits of their logprobs.
TEST_F(RecordedSums, StepsHaveTheBitsOfEagerOnes) {
  const std::vector<std::string> eager = results(true);
  EXPECT_EQ(replays(), 0);
  const std::vector<std::string> recorded = results(false);
  // Sizes 1, 2 and 4 are recorded before, and run as they are.
  EXPECT_EQ(replays(), 2 * (3 + kDecodes));
  ASSERT_EQ(eager.size(), 1u + kDecodes);
  EXPECT_EQ(recorded, eager);
}

TEST_F(RecordedSums, StepsEndWithADeadRank) {
  for (const bool reporter_dies : {false, true}) {
    run_stages(false, [&](Stage& stage, const Assign& assign, Cancellation& cancellation) {
      const std::vector<MicroBatch> steps = make_steps(assign);
      for (int i = 0; i < 4; ++i) stage.run(steps[static_cast<size_t>(i)]);
      if (stage.reporter() == reporter_dies) return;
      EXPECT_LE(cancel_delay(cancellation, [&] { stage.run(steps[4]); }), kSoon);
    });
  }
}

}  // namespace
}  // namespace trireme

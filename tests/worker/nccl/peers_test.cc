// SPDX-License-Identifier: Apache-2.0
// Sums over emulated GPUs that reach each other's memory: ranks are threads, each with a device.
#include "worker/comm/peers.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <limits>
#include <mutex>

#include "tests/support/cuda_emulation/graphs.h"
#include "tests/support/cuda_emulation/memory.h"
#include "tests/support/peer_sum_cases.h"
#include "tests/worker/nccl/ranks.h"
#include "worker/comm/local.h"

namespace trireme {
namespace {

// The errors that end `count` ranks.
std::vector<std::string> errors_of(int count, const std::function<void(int)>& body) {
  cuda::emulation::set_num_devices(8);
  std::vector<std::string> errors;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int index = 0; index < count; ++index) {
    threads.emplace_back([&, index] {
      try {
        body(index);
      } catch (const Error& error) {
        const std::lock_guard lock(mutex);
        errors.emplace_back(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

void run_threads(int count, const std::function<void(int)>& body) {
  for (const std::string& error : errors_of(count, body)) ADD_FAILURE() << error;
}

std::unique_ptr<Backend> gpu(int index) {
  return make_backend({.device = "cuda", .device_index = index});
}

// Cards of all ranks, as they come.
class CardTable {
 public:
  explicit CardTable(int size) : cards_(static_cast<size_t>(size)) {}
  std::vector<PeerCard> exchange(int rank, const PeerCard& card) {
    std::unique_lock lock(mutex_);
    cards_[static_cast<size_t>(rank)] = card;
    ++come_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return come_ == static_cast<int>(cards_.size()); });
    return cards_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<PeerCard> cards_;
  int come_ = 0;
};

struct Peer {
  int rank;
  PeerSum& peers;
  Backend& backend;
};

void run_peers(int size, const std::function<void(Peer)>& body, uint64_t first = 1) {
  CardTable table(size), opened(size);
  run_threads(size, [&](int rank) {
    const auto backend = gpu(rank);
    const auto peers = make_peer_sum(*backend, rank, size, first);
    peers->open(table.exchange(rank, peers->card()));
    opened.exchange(rank, {});
    body({rank, *peers, *backend});
  });
}

class PeerSumTest : public testing::TestWithParam<int> {};

TEST_P(PeerSumTest, IsTheSumInRankOrder) {
  const int size = GetParam();
  run_peers(size, [&](Peer p) {
    uint64_t seed = 0;
    for (const PeerSumCase& param : peer_sum_cases(size == 3)) {
      EXPECT_EQ(check_peer_sum(p.peers, p.backend, p.rank, size, param, ++seed), "")
          << "rank " << p.rank;
    }
  });
}
INSTANTIATE_TEST_SUITE_P(Sizes, PeerSumTest, testing::Range(2, 9));

// Ranks go at different speeds, and the numbers of sums pass what a word has room for.
TEST(PeerSumTest, ManyInARow) {
  constexpr int kSums = 400;
  run_peers(
      4,
      [](Peer p) {
        for (uint64_t seed = 0; seed < kSums; ++seed) {
          if (seed % 4 == static_cast<uint64_t>(p.rank) && seed % 7 == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
          ASSERT_EQ(check_peer_sum(p.peers, p.backend, p.rank, 4, mixed_peer_sum(seed), seed), "")
              << "rank " << p.rank << ", sum " << seed;
        }
      },
      std::numeric_limits<uint32_t>::max() - kSums / 2);
}

// Sums that rank 0 replays are the same as those that the others queue one by one.
TEST(PeerSumTest, MayBeRecorded) {
  constexpr int kSteps = 9;
  constexpr int64_t kCount = 700;
  run_peers(3, [](Peer p) {
    const Buffer buffer = p.backend.allocate(kCount * sizeof(float));
    const Tensor x(buffer.data(), DType::kF32, 1, kCount);
    const auto step = [&] {
      p.peers.sum(x, PeerSum::Way::kAtOnce);
      p.peers.sum(x, PeerSum::Way::kInParts);
      p.peers.sum(x.column_range(0, 5), PeerSum::Way::kAtOnce);
    };
    for (int i = 0; i < kSteps; ++i) {
      Floats values(kCount, static_cast<float>(p.rank + i));
      p.backend.upload(buffer.data(), values.data(), buffer.bytes());
      p.rank == 0 ? p.backend.replay(7, step) : step();
      p.backend.download(values.data(), buffer.data(), buffer.bytes());
      const auto sum = static_cast<float>(3 * (3 + 3 * i));
      EXPECT_EQ(values[4], 3 * sum) << "step " << i;
      EXPECT_EQ(values[5], sum) << "step " << i;
    }
  });
}

// A rank that never comes: the others' kernels wait until they are told not to.
TEST(PeerSumTest, GivesUp) {
  for (const auto way : {PeerSum::Way::kAtOnce, PeerSum::Way::kInParts}) {
    run_peers(3, [&](Peer p) {
      if (p.rank == 1) return;
      const Buffer buffer = p.backend.allocate(5000 * sizeof(float));
      std::atomic<bool> told{false};
      std::jthread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        told = true;
        p.peers.give_up();
      });
      p.peers.sum({buffer.data(), DType::kF32, 1, 5000}, way);
      EXPECT_TRUE(told) << "a sum without rank 1";
      p.peers.sum({buffer.data(), DType::kF32, 1, 5000}, way);  // does not wait
    });
  }
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    return error.what();
  }
  return "";
}

TEST(PeerSumTest, RefusesCardsThatItCannotUse) {
  cuda::emulation::set_num_devices(8);
  const auto theirs = gpu(1), mine = gpu(0), same = gpu(0);
  const auto sum = make_peer_sum(*mine, 0, 2);
  const PeerCard own = sum->card();
  const auto open = [&](const PeerCard& card) {
    return refusal([&] { sum->open(std::vector{own, card}); });
  };
  EXPECT_NE(open(PeerCard{}).find("rank 1: it gives none"), std::string::npos);
  EXPECT_NE(open(make_peer_sum(*theirs, 1, 8)->card()).find("bytes, expected are"),
            std::string::npos);
  const PeerCard gone = make_peer_sum(*theirs, 1, 2)->card();
  EXPECT_NE(open(gone).find("it has gone"), std::string::npos);
  const auto beside = make_peer_sum(*same, 1, 2);
  EXPECT_NE(open(beside->card()).find("two ranks of a process share a GPU"), std::string::npos);
  // The first bytes of a boot id.
  PeerCard foreign = make_peer_sum(*theirs, 1, 2)->card();
  for (size_t i = 16; i < 24; ++i) foreign[i] ^= std::byte{1};
  EXPECT_NE(open(foreign).find("another machine"), std::string::npos);
  for (size_t i = 16; i < foreign.size(); ++i) foreign[i] = std::byte{0xFF};
  EXPECT_NE(open(foreign).find("another machine"), std::string::npos);
}

// ---- groups ----

struct Member {
  Communicator& group;
  Cancellation& cancellation;
  Backend& backend;
};

struct GroupOptions {
  int size = 2;
  bool nccl = false;
  bool one_gpu = false;
  PeerSums peer_sums = PeerSums::kAuto;
  bool deterministic = false;
};

std::vector<std::string> group_errors(
    const GroupOptions& options, const std::function<void(Member)>& body = [](Member) {}) {
  set_nccl_variables({});
  const auto hub = make_local_hub(options.size);
  std::vector<int> ranks(static_cast<size_t>(options.size));
  std::iota(ranks.begin(), ranks.end(), 1);
  Keys keys;
  return errors_of(options.size, [&](int index) {
    Cancellation cancellation;
    const auto backend = gpu(options.one_gpu ? 0 : index);
    DeviceTransportOptions device;
    device.rank = index + 1;
    device.gpu_ranks = {ranks.begin(), ranks.end()};
    if (options.nccl) device.nccl_ranks = device.gpu_ranks;
    device.peer_sums = options.peer_sums;
    device.deterministic = options.deterministic;
    device.keys = &keys;
    device.cancellation = &cancellation;
    device.progress = std::make_shared<Progress>();
    device.nccl.library = kFake;
    device.nccl.ras = {{}, 0};
    const auto host = make_local_transport(hub, index + 1, cancellation);
    const auto tensors = make_device_transport(*host, *backend, device);
    const auto group = tensors->make_group(ranks, 3);
    body({*group, cancellation, *backend});
  });
}

void run_group(const GroupOptions& options, const std::function<void(Member)>& body) {
  for (const std::string& error : group_errors(options, body)) ADD_FAILURE() << error;
}

class PeerGroupTest : public testing::TestWithParam<bool> {};

// Without NCCL all sums go this way; with it, what is measured decides.
TEST_P(PeerGroupTest, DoesAllThatACommunicatorDoes) {
  for (const int size : {2, 4}) {
    run_group({.size = size, .nccl = GetParam()}, [](Member m) {
      for (const int64_t cols : {1, 3, 576, 4097}) check_all_reduce(m.group, 7, cols);
      check_all_reduce(m.group, 3, (1 << 18) + 17);
      m.group.all_reduce_sum(Tensor(nullptr, DType::kF32, 0, 64));
      check_rows_alone(m.group);
      check_gathers(m.group);
      check_broadcasts(m.group);
      check_ordered_sends(m.group, 100);
      m.group.settle();
    });
  }
}
INSTANTIATE_TEST_SUITE_P(Ways, PeerGroupTest, testing::Bool(),
                         [](const auto& row) { return row.param ? "BesideNccl" : "Alone"; });

TEST(PeerGroupTest, AllRanksChooseAlike) {
  fake().set_version(22602);  // what it sums is not recorded, so that the limits show
  std::mutex mutex;
  std::vector<std::vector<bool>> recordable;
  run_group({.size = 3, .nccl = true}, [&](Member m) {
    std::vector<bool> mine;
    for (int64_t bytes = 1; bytes < int64_t{1} << 40; bytes *= 2) {
      mine.push_back(m.group.can_record(bytes));
    }
    const std::lock_guard lock(mutex);
    recordable.push_back(mine);
  });
  fake().set_version(22809);
  ASSERT_EQ(recordable.size(), 3u);
  EXPECT_EQ(recordable[0], recordable[1]);
  EXPECT_EQ(recordable[0], recordable[2]);
}

TEST(PeerGroupTest, DeterministicIsNotMeasured) {
  run_group({.size = 2, .nccl = true, .deterministic = true}, [](Member m) {
    EXPECT_TRUE(m.group.can_record(int64_t{1} << 40));
    check_rows_alone(m.group);
  });
  // Not by NCCL either where the memory cannot be reached, but of two ranks.
  run_group({.size = 2, .nccl = true, .one_gpu = true, .deterministic = true}, [](Member m) {
    EXPECT_TRUE(m.group.can_record(int64_t{1} << 40));
    check_rows_alone(m.group);
  });
  run_group({.size = 3, .nccl = true, .one_gpu = true, .deterministic = true}, [](Member m) {
    EXPECT_FALSE(m.group.can_record(4));
    check_rows_alone(m.group);
    check_all_reduce(m.group, 5, 999);
  });
}

TEST(PeerGroupTest, SaysWhatItCannotDo) {
  const GroupOptions never{.nccl = true, .peer_sums = PeerSums::kNever};
  run_group(never, [](Member m) {
    EXPECT_TRUE(m.group.can_record(4)) << "by NCCL";
    check_all_reduce(m.group, 5, 999);
  });
  run_group({.nccl = true, .one_gpu = true}, [](Member m) {
    EXPECT_TRUE(m.group.can_record(4)) << "by NCCL";
    check_all_reduce(m.group, 5, 999);
  });
  const GroupOptions always{.nccl = true, .one_gpu = true, .peer_sums = PeerSums::kAlways};
  const std::vector<std::string> errors = group_errors(always);
  ASSERT_EQ(errors.size(), 2u);
  for (const std::string& error : errors) {
    EXPECT_NE(error.find("as --peer_sums says: cannot reach"), std::string::npos) << error;
    EXPECT_NE(error.find("share a GPU"), std::string::npos) << error;
  }
}

// Sums beyond the limits go by NCCL, recorded too.
TEST(PeerGroupTest, AreRecordedEitherWay) {
  set_nccl_variables({});
  const int64_t before = cuda::emulation::num_replays();
  const auto hub = make_local_hub(2);
  const std::vector<int> ranks = {1, 2};
  Keys keys;
  run_threads(2, [&](int index) {
    Cancellation cancellation;
    const auto backend = gpu(index);
    const auto work = work_of(*backend, cancellation);
    const auto nccl = make_nccl(*backend, work, kOptions);
    const auto transport = make_local_transport(hub, index + 1, cancellation);
    const auto host = transport->make_group(ranks, 3);
    std::string why;
    auto peers = meet_peers(*host, ranks, *backend, work, why);
    ASSERT_NE(peers, nullptr) << why;
    if (index == 0) keys.give(3, nccl->make_key(), {});
    const auto group = sum_over_peers(nccl->make_group(ranks, index, keys.take(3)),
                                      std::move(peers), {1 << 10, 1 << 10});
    int asked = 0;
    for (const int64_t count : {100, 10000}) {
      ASSERT_TRUE(group->can_record(count * int64_t{sizeof(float)}));
      const Buffer buffer = backend->allocate(static_cast<size_t>(count) * sizeof(float));
      Floats values(static_cast<size_t>(count));
      for (int step = 0; step < 4; ++step) {
        std::iota(values.begin(), values.end(), static_cast<float>(step + index));
        backend->upload(buffer.data(), values.data(), buffer.bytes());
        backend->replay(static_cast<uint64_t>(count), [&] {
          ++asked;
          group->all_reduce_sum({buffer.data(), DType::kF32, 1, count});
        });
        group->replayed();
        group->settle();
        backend->download(values.data(), buffer.data(), buffer.bytes());
        EXPECT_EQ(values.back(), static_cast<float>(2 * (step + count - 1) + 1));
      }
    }
    EXPECT_EQ(asked, 4);
  });
  EXPECT_EQ(cuda::emulation::num_replays() - before, 2 * 2 * 3);
}

// What was queued hangs on the device: the wait ends, and later sums are refused.
TEST(PeerGroupTest, CancelEndsTheWaitForTheDevice) {
  run_group({.size = 2}, [](Member m) {
    Floats x(10);
    m.group.all_reduce_sum(tensor(x, 1));
    if (m.group.rank() == 1) return;
    cuda::emulation::stall_events(true);
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.settle(); }), kCancelDelayMax);
    cuda::emulation::stall_events(false);
  });
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Communicators over threads.
#include <functional>

#include "tests/worker/communicator_cases.h"
#include "worker/comm/local.h"

namespace trireme {
namespace {

struct Member {
  Transport& transport;
  Communicator& group;
  Cancellation& cancellation;
};

// Runs `body` in `size` ranks that form one group.
void run_ranks(int size, const std::function<void(Member)>& body) {
  const auto hub = make_local_hub(size);
  std::vector<int> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 1);
  std::vector<std::thread> threads;
  for (const int rank : ranks) {
    threads.emplace_back([&, rank] {
      Cancellation cancellation;
      const auto transport = make_local_transport(hub, rank, cancellation);
      const auto group = transport->make_group(ranks, 5);
      body({*transport, *group, cancellation});
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class LocalCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(LocalCommunicatorTest, AllReduceSumsInRankOrder) {
  run_ranks(GetParam(), [](Member m) { check_all_reduces(m.group); });
}

TEST_P(LocalCommunicatorTest, RowHasTheSameBitsAlone) {
  run_ranks(GetParam(), [](Member m) { check_rows_alone(m.group); });
}

TEST_P(LocalCommunicatorTest, GathersUnevenAndMissingColumns) {
  run_ranks(GetParam(), [](Member m) { check_gathers(m.group); });
}

TEST_P(LocalCommunicatorTest, BroadcastsFromEachRoot) {
  run_ranks(GetParam(), [](Member m) { check_broadcasts(m.group); });
}

TEST_P(LocalCommunicatorTest, SendsArriveInOrder) {
  run_ranks(GetParam(), [](Member m) {
    check_ordered_sends(m.group, 1);
    check_ordered_sends(m.group, 5000);
  });
}

TEST_P(LocalCommunicatorTest, MovesLargeTensors) {
  run_ranks(GetParam(), [](Member m) { check_large(m.group); });
}

// Collectives of one kind after the other, without a pause in which a rank could catch up.
TEST_P(LocalCommunicatorTest, MixesOperations) {
  run_ranks(GetParam(), [](Member m) {
    for (int i = 0; i < 50; ++i) {
      check_all_reduce(m.group, 1, 64 + i);
      check_all_reduce(m.group, 3, 8192);
      check_gathers(m.group);
      check_ordered_sends(m.group, 10);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, LocalCommunicatorTest, testing::Range(1, 6));

// The last message of a rank reaches its peer although the sender's communicator is gone by then.
TEST(LocalCommunicator, SendOutlivesItsSender) {
  run_ranks(2, [](Member m) {
    Floats x = samples(3, 100);
    if (m.group.rank() == 0) {
      m.group.send(tensor(x, 1), 1);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      Floats y(100);
      m.group.recv(tensor(y, 1), 0);
      expect_same_bits(y, x);
    }
  });
}

// Two groups of the same ranks, in other orders, do not mix their messages.
TEST(LocalCommunicator, GroupsAreApart) {
  run_ranks(3, [](Member m) {
    const std::vector<int> order = {3, 1, 2};
    const auto other = m.transport.make_group(order, 6);
    ASSERT_EQ(order[other->rank()], m.group.rank() + 1);
    Floats in_first = samples(1, 10);
    Floats in_second = samples(2, 10);
    if (m.group.rank() == 0) {
      m.group.send(tensor(in_first, 1), 1);
      other->send(tensor(in_second, 1), 2);
    } else if (m.group.rank() == 1) {
      Floats x(10);
      other->recv(tensor(x, 1), 1);
      expect_same_bits(x, in_second);
      m.group.recv(tensor(x, 1), 0);
      expect_same_bits(x, in_first);
    }
    check_all_reduce(*other, 2, 100);
  });
}

TEST(LocalCommunicator, CancelEndsBlockedReceive) {
  run_ranks(2, [](Member m) {
    Floats x(10);
    if (m.group.rank() != 0) return;
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.recv(tensor(x, 1), 1); }),
              kCancelDelayMax);
  });
}

TEST(LocalCommunicator, CancelEndsBlockedAllReduce) {
  run_ranks(3, [](Member m) {
    Floats x(100000);
    if (m.group.rank() == 2) return;  // the rank that never comes
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.all_reduce_sum(tensor(x, 1)); }),
              kCancelDelayMax);
  });
}

TEST(LocalCommunicator, CancelEndsSendThatMustWait) {
  run_ranks(2, [](Member m) {
    Floats x(10);
    if (m.group.rank() != 0) return;
    m.group.send(tensor(x, 1), 1);
    m.group.send(tensor(x, 1), 1);
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.send(tensor(x, 1), 1); }),
              kCancelDelayMax);
  });
}

// After an abandoned wait the ranks go on in a group with another tag.
TEST(LocalCommunicator, NewGroupAfterCancellation) {
  run_ranks(3, [](Member m) {
    Floats x(1000);
    if (m.group.rank() != 2) {
      cancel_delay(m.cancellation, [&] { m.group.all_reduce_sum(tensor(x, 1)); });
    }
    const auto next = m.transport.make_group(std::vector<int>{1, 2, 3}, 6);
    check_all_reduces(*next);
  });
}

TEST(LocalCommunicator, WrongLengthIsAnError) {
  run_ranks(2, [](Member m) {
    Floats x(10);
    if (m.group.rank() == 0) {
      m.group.send(tensor(x, 1), 1);
      return;
    }
    Floats y(11);
    try {
      m.group.recv(tensor(y, 1), 0);
      FAIL() << "44 bytes out of a message of 40";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInternal);
    }
  });
}

TEST(LocalCommunicator, TagOfALivingGroupIsRefused) {
  run_ranks(1, [](Member m) {
    try {
      m.transport.make_group(std::vector<int>{1}, 5);
      FAIL() << "two groups with one tag";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    }
  });
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Communicators over MPI: mpirun -n 3 or -n 5. All ranks run the same tests in the same order; the
// rank that fails one ends the job with status 1.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "tests/worker/communicator_cases.h"
#include "worker/comm/mpi.h"

namespace trireme {
namespace {

MpiJob* job = nullptr;  // of main()

class MpiCommunicatorTest : public testing::Test {
 protected:
  MpiCommunicatorTest() {
    std::vector<int> ranks(job->size());
    std::iota(ranks.begin(), ranks.end(), 0);
    group_ = transport_->make_group(ranks, next_tag());
  }
  // Every test has tags of its own, the same in all ranks.
  static int next_tag() {
    static int tag = 100;
    return ++tag;
  }

  Cancellation cancellation_;
  std::unique_ptr<Transport> transport_ = job->make_transport(cancellation_);
  std::unique_ptr<Communicator> group_;
};

TEST_F(MpiCommunicatorTest, BroadcastsBytes) {
  const std::string text = std::string("addresses\0and a key", 19) + std::string(60000, 'x');
  EXPECT_EQ(job->broadcast(job->rank() == 0 ? text : "", std::chrono::milliseconds(5000)), text);
  EXPECT_EQ(job->broadcast("", std::chrono::milliseconds(5000)), "");
}

TEST_F(MpiCommunicatorTest, GathersWordsInRank0) {
  const auto words =
      job->gather("rank " + std::to_string(job->rank()), std::chrono::milliseconds(5000));
  ASSERT_EQ(words.size(), job->rank() == 0 ? static_cast<size_t>(job->size()) : 0);
  for (size_t rank = 0; rank < words.size(); ++rank) {
    EXPECT_EQ(words[rank], "rank " + std::to_string(rank));
  }
}

TEST_F(MpiCommunicatorTest, AllReduceSumsInRankOrder) { check_all_reduces(*group_); }

TEST_F(MpiCommunicatorTest, RowHasTheSameBitsAlone) { check_rows_alone(*group_); }

TEST_F(MpiCommunicatorTest, GathersUnevenAndMissingColumns) { check_gathers(*group_); }

TEST_F(MpiCommunicatorTest, BroadcastsFromEachRoot) { check_broadcasts(*group_); }

TEST_F(MpiCommunicatorTest, SendsArriveInOrder) {
  check_ordered_sends(*group_, 1);
  check_ordered_sends(*group_, 5000);
}

TEST_F(MpiCommunicatorTest, MovesLargeTensors) { check_large(*group_); }

TEST_F(MpiCommunicatorTest, MixesOperations) {
  for (int i = 0; i < 30; ++i) {
    check_all_reduce(*group_, 1, 64 + i);
    check_all_reduce(*group_, 3, 8192);
    check_gathers(*group_);
    check_ordered_sends(*group_, 10);
  }
}

// A group without rank 0, in another order, beside the group of all.
TEST_F(MpiCommunicatorTest, GroupsAreApart) {
  const int tag = next_tag();
  if (job->rank() != 0 && job->rank() < 3) {
    const auto other = transport_->make_group(std::vector<int>{2, 1}, tag);
    EXPECT_EQ(other->rank(), 2 - job->rank());
    check_all_reduces(*other);
  }
  check_all_reduce(*group_, 2, 100);
}

// A long message leaves although the sender never enters MPI again, as a worker that sleeps does.
TEST_F(MpiCommunicatorTest, LongSendNeedsNoFurtherCall) {
  Floats x = samples(1, 1 << 20);
  if (group_->rank() == 0) {
    group_->send(tensor(x, 1), 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
  } else if (group_->rank() == 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const auto begin = std::chrono::steady_clock::now();
    Floats y(1 << 20);
    group_->recv(tensor(y, 1), 0);
    expect_same_bits(y, x);
    EXPECT_LE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(300));
  }
  check_all_reduce(*group_, 1, 1);
}

// From here on the job is abandoned: MPI is not finalised.
TEST_F(MpiCommunicatorTest, WrongLengthIsAnError) {
  Floats x(20);
  if (group_->rank() == 0) {
    group_->send(Tensor(x.data(), DType::kF32, 1, 10), 1);
    group_->send(Tensor(x.data(), DType::kF32, 1, 10), 2);
  } else if (group_->rank() <= 2) {
    // Rank 1 expects less than was sent, rank 2 more.
    try {
      group_->recv(Tensor(x.data(), DType::kF32, 1, group_->rank() == 1 ? 9 : 11), 0);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInternal) << error.what();  // and nobody is said to be dead
    }
  }
}

// The last rank says nothing: rank 0 names it and no other.
TEST_F(MpiCommunicatorTest, NamesWhoSaysNothing) {
  const bool late = job->rank() == job->size() - 1;
  if (late) return;
  if (job->rank() != 0) {
    job->gather("here", std::chrono::milliseconds(5000));
    return;
  }
  try {
    job->gather("", std::chrono::milliseconds(200));
    ADD_FAILURE() << "nobody was missed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kDeadlineExceeded);
    EXPECT_NE(std::string(error.what()).find("from rank " + std::to_string(job->size() - 1)),
              std::string::npos)
        << error.what();
  }
}

TEST_F(MpiCommunicatorTest, CancelEndsBlockedReceive) {
  Floats x(10);
  if (group_->rank() == 0) return;
  EXPECT_LE(cancel_delay(cancellation_, [&] { group_->recv(tensor(x, 1), 0); }), kCancelDelayMax);
}

TEST_F(MpiCommunicatorTest, CancelEndsBlockedAllReduce) {
  for (const int64_t count : {10, 1 << 20}) {
    const int tag = next_tag();
    if (group_->rank() == 0) continue;  // the rank that never comes
    std::vector<int> ranks(job->size());
    std::iota(ranks.begin(), ranks.end(), 0);
    auto group = transport_->make_group(ranks, tag);
    Floats x(count);
    EXPECT_LE(cancel_delay(cancellation_, [&] { group->all_reduce_sum(tensor(x, 1)); }),
              kCancelDelayMax);
    group.reset();
    EXPECT_THROW(transport_->make_group(ranks, tag), Error);  // its messages may still come
  }
}

// Nor does anybody look for ever after a message that a dead rank never takes.
TEST_F(MpiCommunicatorTest, CancelLetsGoOfWhatIsBeingSent) {
  const int tag = next_tag();
  if (group_->rank() == 0) return;  // the rank that takes nothing
  const std::vector<int> ranks = {0, group_->rank()};
  auto edge = transport_->make_group(ranks, tag);
  Floats x(8 << 20);
  edge->send(tensor(x, 1), 0);
  cancellation_.cancel("rank 0 is dead");
  edge.reset();
  cancellation_.reset();
  EXPECT_THROW(transport_->make_group(ranks, tag), Error);
}

// The survivors go on; late messages of the abandoned groups change nothing.
TEST_F(MpiCommunicatorTest, WorksAfterCancellation) {
  check_all_reduces(*group_);
  check_ordered_sends(*group_, 5000);
}

// Nobody leaves while another still has tests to run. The tests have left operations behind that
// will never be done, so the job ends as a job does that has lost a rank.
[[noreturn]] void end_together() {
  Cancellation cancellation;
  const auto transport = job->make_transport(cancellation);
  std::vector<int> ranks(job->size());
  std::iota(ranks.begin(), ranks.end(), 0);
  const auto group = transport->make_group(ranks, 1);
  float value = 0;
  group->all_reduce_sum(Tensor(&value, DType::kF32, 1, 1));
  if (job->rank() == 0) job->abort(0);
  std::this_thread::sleep_for(std::chrono::seconds(30));
  std::_Exit(1);
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  trireme::MpiJob mpi;
  trireme::job = &mpi;
  if (mpi.size() < 3) {
    std::fprintf(stderr, "these tests need 3 ranks, found %d; run them under mpirun -n 3\n",
                 mpi.size());
    return 1;
  }
  if (RUN_ALL_TESTS() != 0) mpi.abort(1);
  trireme::end_together();
}

// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>

#include <csignal>
#include <thread>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class WaitReady : public testing::Test {
 protected:
  WaitReady() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(pipe(ends), 0);
    reader_ = FileDescriptor(ends[0]);
    writer_ = FileDescriptor(ends[1]);
  }
  FileDescriptor reader_, writer_;
};

TEST_F(WaitReady, SaysWhetherTheDeadlineCameFirst) {
  const auto begin = steady_clock::now();
  EXPECT_FALSE(wait_ready(reader_.get(), POLLIN, begin + milliseconds(30)));
  EXPECT_GE(steady_clock::now() - begin, milliseconds(30));
  EXPECT_FALSE(wait_ready(reader_.get(), POLLIN, begin)) << "a deadline that has passed";
  EXPECT_EQ(write(writer_.get(), "x", 1), 1);
  EXPECT_TRUE(wait_ready(reader_.get(), POLLIN, begin));
  EXPECT_TRUE(wait_ready(reader_.get(), POLLIN, TimePoint::max()));
}

// A signal that the program handles is no deadline.
TEST_F(WaitReady, GoesOnAfterASignal) {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  struct sigaction before {};
  ASSERT_EQ(sigaction(SIGUSR2, &action, &before), 0);
  const pthread_t waiter = pthread_self();
  std::thread other([&] {
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(milliseconds(5));
      pthread_kill(waiter, SIGUSR2);
    }
    EXPECT_EQ(write(writer_.get(), "x", 1), 1);
  });
  EXPECT_TRUE(wait_ready(reader_.get(), POLLIN, steady_clock::now() + milliseconds(20'000)));
  other.join();
  sigaction(SIGUSR2, &before, nullptr);
}

}  // namespace
}  // namespace trireme

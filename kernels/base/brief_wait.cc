// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/brief_wait.h"

#include <sys/prctl.h>

#include <thread>

namespace trireme {
namespace {

constexpr std::chrono::microseconds kSpin{100};
constexpr std::chrono::microseconds kNap{20};
constexpr int kPauses = 8;  // between two looks: far less than a message takes

// The kernel adds up to 50 µs to every sleep of a thread that does not say otherwise.
void sleep_precisely() {
  thread_local const int set = prctl(PR_SET_TIMERSLACK, 1UL);
  static_cast<void>(set);
}

}  // namespace

void BriefWait::pause() {
  if (lasted() < kSpin) {
    for (int i = 0; i < kPauses; ++i) __builtin_ia32_pause();
  } else {
    sleep_precisely();
    std::this_thread::sleep_for(kNap);
  }
}

}  // namespace trireme

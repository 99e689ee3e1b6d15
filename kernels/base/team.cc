// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/team.h"

#include <algorithm>
#include <string>
#include <system_error>

#include "kernels/base/error.h"

namespace trireme {
namespace {

// Some 50 us: longer than what lies between two operations of a step, shorter than what a sleeping
// thread's core is worth to somebody else.
constexpr int kSpins = 1500;

// Waits until the value is no longer `old`.
template <typename T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    __builtin_ia32_pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int num_threads) {
  try {
    helpers_.reserve(static_cast<size_t>(std::max(num_threads - 1, 0)));
    for (int thread = 1; thread < num_threads; ++thread) {
      helpers_.emplace_back([this, thread] { help(thread); });
    }
  } catch (const std::system_error& error) {
    const size_t started = helpers_.size() + 1;
    end();
    throw Error(Code::kResourceExhausted,
                "cannot start " + std::to_string(num_threads) + " threads, only " +
                    std::to_string(started) + ": " + error.code().message() +
                    "; lower --threads, or raise the limits on processes and memory (ulimit -u, "
                    "-v; the cgroup's pids.max)");
  }
}

Team::~Team() { end(); }

void Team::end() {
  call_ = nullptr;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void Team::run_erased(Call call, const void* context) {
  call_ = call;
  context_ = context;
  working_.store(static_cast<int32_t>(helpers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  call(context, 0);
  for (int32_t left = working_.load(std::memory_order_acquire); left != 0;
       left = working_.load(std::memory_order_acquire)) {
    wait_while(working_, left);
  }
}

void Team::help(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    wait_while(round_, seen);
    if (call_ == nullptr) return;
    call_(context_, thread);
    if (working_.fetch_sub(1, std::memory_order_release) == 1) working_.notify_one();
  }
}

}  // namespace trireme

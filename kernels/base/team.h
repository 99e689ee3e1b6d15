// SPDX-License-Identifier: Apache-2.0
// The host's threads of one backend, and the loops that run on them.
//
// Not OpenMP: its barriers spin for milliseconds, and as soon as one more process wants a core (the
// coordinator, a client) the spinner holds the core that the last thread is waiting for; steps then
// take ten times as long. Here a thread that waits spins for some microseconds, as long as the
// gap between two operations, and then sleeps. ThreadSanitizer can follow it as well.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace trireme {

// A caller and num_threads - 1 helpers. Used by one thread at a time, the owner of the backend.
class Team {
 public:
  // Throws kResourceExhausted.
  explicit Team(int num_threads);
  ~Team();
  Team(const Team&) = delete;

  int num_threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls body(thread) once on every thread, 0 being the caller; returns when all have returned.
  template <typename Body>
  void run(const Body& body) {
    run_erased(
        [](const void* context, int thread) { (*static_cast<const Body*>(context))(thread); },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int thread);
  void run_erased(Call call, const void* context);
  void help(int thread);
  void end();  // of all helpers

  Call call_ = nullptr;  // both published by round_
  const void* context_ = nullptr;
  std::atomic<uint32_t> round_{0};   // a new value: there is work, or the end (call_ is null)
  std::atomic<int32_t> working_{0};  // helpers that have not returned yet
  std::vector<std::thread> helpers_;
};

// Calls fn(index, thread) once for every index in [0, count) on the team's threads. fn must not
// throw, and what it writes must not depend on which thread takes which index. Indices are handed
// out one by one, so that a thread which the machine disturbs takes fewer.
template <typename Function>
void parallel_for(Team& team, int64_t count, const Function& fn) {
  if (team.num_threads() == 1 || count <= 1) {
    for (int64_t index = 0; index < count; ++index) fn(index, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  team.run([&](int thread) {
    for (;;) {
      const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return;
      fn(index, thread);
    }
  });
}

// The same for few indices whose fn(index) may throw: all are tried, and the error of the lowest
// one is thrown.
template <typename Function>
void parallel_try(Team& team, int64_t count, const Function& fn) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  parallel_for(team, count, [&](int64_t index, int) {
    try {
      fn(index);
    } catch (...) {
      errors[static_cast<size_t>(index)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) std::rethrow_exception(error);
  }
}

}  // namespace trireme

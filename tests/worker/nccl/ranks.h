// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads, over emulated GPUs and the library that stands for NCCL's.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/base/check.h"
#include "tests/worker/communicator_cases.h"
#include "topology/nccl_settings.h"
#include "worker/comm/device_transport.h"
#include "worker/comm/nccl.h"

namespace trireme {

inline const std::string kFake = TRIREME_FAKE_NCCL;
inline const NcclOptions kOptions{kFake, {{}, 0}};

// What the fake has beside NCCL's own functions.
struct Fake {
  Fake() {
    void* const handle = dlopen(kFake.c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(handle != nullptr, dlerror());
    const auto find = [handle](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      CHECK(function != nullptr, name);
    };
    find("fake_nccl_set_error", set_error);
    find("fake_nccl_set_version", set_version);
    find("fake_nccl_num_aborts", num_aborts);
    find("fake_nccl_num_stuck", num_stuck);
    find("fake_nccl_hold", hold);
  }
  void (*set_error)(int);
  void (*set_version)(int);
  int (*num_aborts)();
  int (*num_stuck)();
  void (*hold)(bool);
};

inline const Fake& fake() {
  static const Fake instance;
  return instance;
}

// Keys go from thread to thread.
class Keys : public KeyExchange {
 public:
  void give(int tag, const std::string& key, std::span<const int>) override {
    const std::lock_guard lock(mutex_);
    of_tag_[tag] = key;
    changed_.notify_all();
  }
  std::string take(int tag) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return of_tag_.contains(tag); });
    return of_tag_[tag];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, std::string> of_tag_;
};

// One of a group of ranks 1, 2, …
struct NcclMember {
  Nccl& nccl;
  Communicator& group;
  Cancellation& cancellation;
  Progress& progress;
  Backend& backend;
};

inline std::shared_ptr<QueuedWork> work_of(Backend& backend, const Cancellation& cancellation) {
  return std::make_shared<QueuedWork>(backend, cancellation, std::make_shared<Progress>());
}

inline void run_ranks(int size, const std::function<void(NcclMember)>& body,
                      const NcclOptions& options = kOptions) {
  set_nccl_variables({});
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 1);
  const auto make = [] { return make_backend({.device = "cuda"}); };
  const auto first = make();
  const Cancellation never;
  const std::string key = make_nccl(*first, work_of(*first, never), kOptions)->make_key();
  std::vector<std::thread> threads;
  for (int index = 0; index < size; ++index) {
    threads.emplace_back([&, index] {
      Cancellation cancellation;
      const auto progress = std::make_shared<Progress>();
      const auto backend = make();
      const auto work = std::make_shared<QueuedWork>(*backend, cancellation, progress);
      const auto nccl = make_nccl(*backend, work, options);
      const auto group = nccl->make_group(ranks, index, key);
      body({*nccl, *group, cancellation, *progress, *backend});
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline Code code_of(const std::function<void()>& body, const std::string& part) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    return error.code();
  }
  ADD_FAILURE() << "no error; expected one that says " << part;
  return Code::kInternal;
}

}  // namespace trireme

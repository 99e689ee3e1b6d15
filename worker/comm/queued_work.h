// SPDX-License-Identifier: Apache-2.0
// What a rank has queued on its device and other ranks have a part in. One kernel that waits for a
// dead peer keeps the whole stream, so all of it is waited for here, and ends together.
#pragma once

#include <chrono>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/brief_wait.h"
#include "kernels/base/check.h"
#include "worker/comm/cancellation.h"
#include "worker/progress.h"

namespace trireme {

// Shared by the communicators of a rank; used by its thread. The backend and the cancellation
// outlive it.
class QueuedWork {
 public:
  using Duration = BriefWait::Clock::duration;

  // Those whose kernels wait for other ranks.
  class Part {
   public:
    virtual ~Part() = default;
    // Throws what has gone wrong; asked now and then while a wait for `peers` lasts.
    virtual void look(std::span<const int> /*peers*/, Duration /*lasted*/) {}
    // Its kernels return soon, whatever they wait for; called once. Throws nothing.
    virtual void end() = 0;
  };

  QueuedWork(Backend& backend, const Cancellation& cancellation, std::shared_ptr<Progress> progress)
      : backend_(backend), cancellation_(cancellation), progress_(std::move(progress)) {}
  QueuedWork(const QueuedWork&) = delete;

  // Until remove(). Those that came last end first.
  void add(Part& part) { parts_.push_back(&part); }
  void remove(Part& part) { std::erase(parts_, &part); }

  void require_life() const { CHECK(!ended_, "a communicator was used after its end"); }
  // Something was queued that these world ranks have a part in.
  void queued(std::span<const int> peers) { unsettled_.insert(peers.begin(), peers.end()); }
  bool settled() const { return unsettled_.empty(); }

  // Until done() or an error; `peers`, world ranks, are told as those that it waits for. Throws
  // kCancelled.
  template <class Done>
  void wait(std::span<const int> peers, Done done) {
    BriefWait brief;
    bool told = false;
    while (!done()) {
      throw_if_cancelled();
      if (const Duration lasted = brief.lasted(); lasted >= kUsual) {
        for (Part* const part : std::vector(parts_)) part->look(peers, lasted);
        if (!told) {
          progress_->step();
          progress_->wait_for(peers);
          told = true;
        }
      }
      brief.pause();
    }
    if (told) progress_->wait_for({});
  }

  // Until what was queued has been done.
  void settle() {
    if (unsettled_.empty()) return;
    if (ended_) throw Error(Code::kCancelled, "the exchange of tensors has failed before");
    wait(std::vector(unsettled_.begin(), unsettled_.end()), [this] { return backend_.idle(); });
    unsettled_.clear();
  }

  void end() {
    if (std::exchange(ended_, true)) return;
    for (size_t i = parts_.size(); i-- > 0;) parts_[i]->end();
  }

  const std::shared_ptr<Progress>& progress() const { return progress_; }
  const Cancellation& cancellation() const { return cancellation_; }

 private:
  // What takes longer is told, and looks for errors.
  static constexpr std::chrono::milliseconds kUsual{1};

  void throw_if_cancelled() {
    if (!cancellation_.cancelled()) return;
    end();
    cancellation_.throw_if_cancelled();
  }

  Backend& backend_;
  const Cancellation& cancellation_;
  const std::shared_ptr<Progress> progress_;
  std::vector<Part*> parts_;
  std::set<int> unsettled_;  // for whom something was queued since the last settle()
  bool ended_ = false;
};

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/service_stream.h"

#include <algorithm>
#include <string>
#include <utility>

namespace trireme {
void OpenStreams::enter() {
  std::lock_guard lock(mutex_);
  ++count_;
}

void OpenStreams::leave() {
  std::lock_guard lock(mutex_);
  // Under the lock: whoever waits may destroy this as soon as it is released.
  if (--count_ == 0) none_.notify_all();
}

int OpenStreams::count() const {
  std::lock_guard lock(mutex_);
  return count_;
}

bool OpenStreams::wait_none(std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  return none_.wait_for(lock, timeout, [this] { return count_ == 0; });
}

ReplyStream::Pending& ReplyStream::pending(int32_t index) {
  const auto found = std::find_if(pending_.begin(), pending_.end(),
                                  [index](const Pending& one) { return one.index == index; });
  if (found != pending_.end()) return *found;
  pending_.emplace_back().index = index;
  return pending_.back();
}

void ReplyStream::add(const v1::Delta& delta) {
  std::unique_lock lock(mutex_);
  if (closed_) return;
  const size_t bytes = delta.ByteSizeLong();
  pending_bytes_ += bytes;
  if (pending_bytes_ > kMaxBacklogBytes) {
    pending_.clear();
    close_locked(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                              "the client does not read: " + std::to_string(pending_bytes_) +
                                  " bytes of output wait, at most " +
                                  std::to_string(kMaxBacklogBytes) +
                                  " may; the request was ended"));
    pump(lock);
    on_abandon_();
    return;
  }
  Pending& waiting = pending(delta.index());
  waiting.delta_bytes += bytes;
  if (!waiting.delta) {
    waiting.delta = delta;
  } else {
    waiting.delta->mutable_text()->append(delta.text());
    waiting.delta->mutable_token_ids()->MergeFrom(delta.token_ids());
    waiting.delta->mutable_logprobs()->MergeFrom(delta.logprobs());
  }
  pump(lock);
}

void ReplyStream::finish(const v1::Finished& finished, bool last) {
  std::unique_lock lock(mutex_);
  if (closed_) return;
  pending(finished.index()).finished = finished;
  if (last) close_locked(grpc::Status::OK);
  pump(lock);
}

bool ReplyStream::take(v1::GenerateReply& reply) {
  if (pending_.empty()) return false;
  Pending& first = pending_.front();
  if (first.delta) {
    *reply.mutable_delta() = std::move(*first.delta);
    first.delta.reset();
    pending_bytes_ -= std::exchange(first.delta_bytes, 0);
  } else {
    *reply.mutable_finished() = std::move(*first.finished);
    first.finished.reset();
  }
  if (!first.finished && !first.delta) pending_.pop_front();
  return true;
}

void HealthStream::update(const v1::ClusterHealth& health) {
  std::unique_lock lock(mutex_);
  if (closed_) return;
  latest_ = health;
  pending_ = true;
  pump(lock);
}

bool HealthStream::take(v1::ClusterHealth& health) {
  if (!pending_) return false;
  pending_ = false;
  health = latest_;
  return true;
}

}  // namespace trireme

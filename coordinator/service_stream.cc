// SPDX-License-Identifier: Apache-2.0
#include "coordinator/service_stream.h"

#include <string>

namespace trireme {
namespace {

// Progress of a rank is not a change of health.
bool same_states(const v1::ClusterHealth& a, const v1::ClusterHealth& b) {
  if (a.serving() != b.serving() || a.ranks_size() != b.ranks_size()) return false;
  for (int i = 0; i < a.ranks_size(); ++i) {
    if (a.ranks(i).rank() != b.ranks(i).rank() || a.ranks(i).state() != b.ranks(i).state()) {
      return false;
    }
  }
  return true;
}

}  // namespace

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

void ReplyStream::add(const v1::Delta& delta) {
  std::unique_lock lock(mutex_);
  if (closed_) return;
  pending_bytes_ += delta.ByteSizeLong();
  if (pending_bytes_ > kMaxBacklogBytes) {
    pending_.reset();
    close_locked(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                              "the client does not read: " + std::to_string(pending_bytes_) +
                                  " bytes of output wait, at most " +
                                  std::to_string(kMaxBacklogBytes) +
                                  " may; the request was ended"));
    pump(lock);
    on_abandon_();
    return;
  }
  if (!pending_) {
    pending_ = delta;
  } else {
    pending_->mutable_text()->append(delta.text());
    pending_->mutable_token_ids()->MergeFrom(delta.token_ids());
    pending_->mutable_logprobs()->MergeFrom(delta.logprobs());
  }
  pump(lock);
}

void ReplyStream::finish(const v1::Finished& finished) {
  std::unique_lock lock(mutex_);
  if (closed_) return;
  finished_ = finished;
  close_locked(grpc::Status::OK);
  pump(lock);
}

bool ReplyStream::take(v1::GenerateReply& reply) {
  if (pending_) {
    *reply.mutable_delta() = std::move(*pending_);
    pending_.reset();
    pending_bytes_ = 0;
    return true;
  }
  if (!finished_) return false;
  *reply.mutable_finished() = std::move(*finished_);
  finished_.reset();
  return true;
}

void HealthStream::update(const v1::ClusterHealth& health) {
  std::unique_lock lock(mutex_);
  if (closed_ || (any_ && same_states(latest_, health))) return;
  latest_ = health;
  any_ = true;
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

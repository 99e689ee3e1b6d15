// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/host_communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

// Up to here everyone sends everything to everyone: one round, more bytes. Above, two rounds.
constexpr size_t kDirectBytes = kDirectSumBytes;
// A longer sum is made piece by piece, so that staging stays small and in the cache.
constexpr size_t kSegmentFloats = kSumSegment;

std::span<std::byte> bytes_of(Tensor x) {
  CHECK(x.rows >= 0 && x.cols >= 0 && (x.rows <= 1 || x.stride == x.cols),
        "a tensor that travels must be contiguous");
  return {static_cast<std::byte*>(x.data),
          static_cast<size_t>(x.rows * x.cols * element_size(x.dtype))};
}

void copy(std::span<std::byte> to, std::span<const std::byte> from) {
  CHECK(to.size() == from.size(), "copy between different sizes");
  if (!from.empty()) std::memcpy(to.data(), from.data(), from.size());
}

}  // namespace

HostCommunicator::HostCommunicator(int rank, int size, std::shared_ptr<Staging> staging,
                                   std::shared_ptr<Progress> progress)
    : Communicator(std::move(progress)),
      rank_(rank),
      size_(size),
      staging_(std::move(staging)),
      next_send_(size, kFirstSend) {
  CHECK(rank >= 0 && rank < size, "a rank outside its group");
  started_.reserve(num_operations());
}

std::shared_ptr<Staging> HostCommunicator::make_staging(int size) {
  return std::make_shared<Staging>(kFirstOutbox + 2 * size);
}

uint64_t HostCommunicator::reserve(const StagingBytes& bytes, int to) {
  staging_->get(kIncoming, bytes.incoming);
  staging_->get(kOutgoing, bytes.outgoing);
  if (bytes.outbox > 0) {
    CHECK(to >= 0 && to < size_, "outboxes for a rank outside the group");
    for (const Kind kind : {kFirstSend, kSecondSend}) {
      staging_->get(kFirstOutbox + 2 * to + kind, bytes.outbox);
    }
  }
  return staging_->bytes();
}

void HostCommunicator::put(std::span<const std::byte> bytes, int to) {
  if (bytes.empty()) return;
  const int operation = to * kOperations + kCollectiveSend;
  start_send(operation, bytes, to);
  started_.push_back(operation);
}

void HostCommunicator::take(std::span<std::byte> bytes, int from) {
  if (bytes.empty()) return;
  const int operation = from * kOperations + kReceive;
  start_recv(operation, bytes, from);
  started_.push_back(operation);
}

void HostCommunicator::finish() {
  wait(started_);
  started_.clear();
}

void HostCommunicator::all_reduce_sum(Tensor x) {
  CHECK(x.dtype == DType::kF32, "only fp32 is summed");
  const std::span<std::byte> bytes = bytes_of(x);
  std::span<float> rest(static_cast<float*>(x.data), bytes.size() / sizeof(float));
  if (size_ == 1) return;
  while (!rest.empty()) {
    const std::span<float> segment = rest.first(std::min(rest.size(), kSegmentFloats));
    if (segment.size_bytes() <= kDirectBytes) {
      reduce_direct(segment);
    } else {
      reduce_scattered(segment);
    }
    rest = rest.subspan(segment.size());
  }
}

// y = ((part 0 + part 1) + part 2) + … The parts lie one after the other in `incoming`, by rank;
// this rank's own is `own`.
void HostCommunicator::add_in_rank_order(std::span<float> y, std::span<const std::byte> own,
                                         std::span<const std::byte> incoming) const {
  for (int r = 0; r < size_; ++r) {
    const std::byte* part = r == rank_ ? own.data() : incoming.data() + r * y.size_bytes();
    const float* values = reinterpret_cast<const float*>(part);
    if (r == 0) {
      std::copy_n(values, y.size(), y.data());
    } else {
      for (size_t i = 0; i < y.size(); ++i) y[i] += values[i];
    }
  }
}

void HostCommunicator::reduce_direct(std::span<float> x) {
  const size_t bytes = x.size_bytes();
  const std::span<std::byte> own = staging_->get(kOutgoing, bytes);
  const std::span<std::byte> incoming = staging_->get(kIncoming, bytes * size_);
  copy(own, std::as_bytes(x));
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    take(incoming.subspan(r * bytes, bytes), r);
    put(own, r);
  }
  finish();
  add_in_rank_order(x, own, incoming);
}

// Rank r sums part r of x and gives the result to all: each value travels twice, whatever the size
// of the group.
void HostCommunicator::reduce_scattered(std::span<float> x) {
  const std::span<std::byte> all = staging_->get(kOutgoing, x.size_bytes());
  const auto part_of = [&](int r, auto values, size_t unit) {
    const size_t begin = x.size() * r / size_;
    return values.subspan(begin * unit, (x.size() * (r + 1) / size_ - begin) * unit);
  };
  const std::span<float> mine = part_of(rank_, x, 1);
  const std::span<std::byte> mine_staged = part_of(rank_, all, sizeof(float));
  const std::span<std::byte> incoming = staging_->get(kIncoming, mine.size_bytes() * size_);

  copy(all, std::as_bytes(x));
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    take(incoming.subspan(r * mine.size_bytes(), mine.size_bytes()), r);
    put(part_of(r, all, sizeof(float)), r);
  }
  finish();
  add_in_rank_order(mine, mine_staged, incoming);

  copy(mine_staged, std::as_bytes(mine));
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    take(part_of(r, all, sizeof(float)), r);
    put(mine_staged, r);
  }
  finish();
  copy(std::as_writable_bytes(x), all);
}

void HostCommunicator::gather_columns(Tensor all, Tensor mine, std::span<const int> cols,
                                      int root) {
  CHECK(static_cast<int>(cols.size()) == size_, "gather_columns needs the columns of every rank");
  CHECK(mine.cols == cols[rank_], "gather_columns got other columns than it was told");
  if (rank_ != root) {
    const std::span<std::byte> outgoing = staging_->get(kOutgoing, bytes_of(mine).size());
    copy(outgoing, bytes_of(mine));
    put(outgoing, root);
    finish();
    return;
  }
  const int64_t total = std::accumulate(cols.begin(), cols.end(), int64_t{0});
  CHECK(all.rows == mine.rows && all.cols == total, "gather_columns got a result of wrong shape");
  const int64_t width = element_size(mine.dtype);
  const std::span<std::byte> incoming = staging_->get(kIncoming, all.rows * total * width);
  int64_t first = 0;
  for (int r = 0; r < size_; first += cols[r++]) {
    const std::span<std::byte> part =
        incoming.subspan(all.rows * first * width, all.rows * cols[r] * width);
    if (r == rank_) {
      copy(part, bytes_of(mine));
    } else {
      take(part, r);
    }
  }
  finish();
  first = 0;
  for (int r = 0; r < size_; first += cols[r++]) {
    if (cols[r] == 0) continue;
    const std::byte* part = incoming.data() + all.rows * first * width;
    for (int64_t t = 0; t < all.rows; ++t) {
      std::memcpy(all.at(t, first), part + t * cols[r] * width, cols[r] * width);
    }
  }
}

void HostCommunicator::broadcast(Tensor x, int root) {
  const std::span<std::byte> bytes = bytes_of(x);
  if (size_ == 1 || bytes.empty()) return;
  const std::span<std::byte> staged =
      staging_->get(rank_ == root ? kOutgoing : kIncoming, bytes.size());
  if (rank_ == root) {
    copy(staged, bytes);
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) put(staged, r);
    }
    finish();
  } else {
    take(staged, root);
    finish();
    copy(bytes, staged);
  }
}

// Two messages to a peer may be on their way; a third waits for the first.
void HostCommunicator::send(Tensor x, int to) {
  CHECK(to >= 0 && to < size_ && to != rank_, "send to a rank outside the group");
  const std::span<std::byte> bytes = bytes_of(x);
  if (bytes.empty()) return;
  const Kind kind = next_send_[to];
  next_send_[to] = kind == kFirstSend ? kSecondSend : kFirstSend;
  const int operation = to * kOperations + kind;
  wait(std::span(&operation, 1));
  const std::span<std::byte> staged = staging_->get(kFirstOutbox + 2 * to + kind, bytes.size());
  copy(staged, bytes);
  start_send(operation, staged, to);
}

void HostCommunicator::recv(Tensor x, int from) {
  CHECK(from >= 0 && from < size_ && from != rank_, "recv from a rank outside the group");
  const std::span<std::byte> bytes = bytes_of(x);
  if (bytes.empty()) return;
  const std::span<std::byte> staged = staging_->get(kIncoming, bytes.size());
  take(staged, from);
  finish();
  copy(bytes, staged);
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/peers.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

using std::chrono::steady_clock;

// Memory that others seem to reach but do not would make the first sum wait for ever.
constexpr std::chrono::seconds kTrialTime{20};

// The same in all ranks.
double sum_of_all(Communicator& host, double mine) {
  auto value = static_cast<float>(mine);
  host.all_reduce_sum({&value, DType::kF32, 1, 1});
  return value;
}

bool nobody_failed(Communicator& host, bool failed) {
  return sum_of_all(host, failed ? 1 : 0) == 0;
}

std::vector<PeerCard> exchange_cards(Communicator& host, const PeerCard& mine) {
  static_assert(kPeerCardBytes % sizeof(float) == 0);
  std::vector<PeerCard> cards(static_cast<size_t>(host.size()));
  cards[static_cast<size_t>(host.rank())] = mine;
  for (int r = 0; r < host.size(); ++r) {
    host.broadcast({cards[static_cast<size_t>(r)].data(), DType::kF32, 1,
                    int64_t{kPeerCardBytes / sizeof(float)}},
                   r);
  }
  return cards;
}

// ---- the trial ----

// Small integers, whose sums are exact.
float trial_value(int rank, int64_t index) {
  return static_cast<float>((index * 31 + rank * 17) % 997);
}

// Of `count` values; what is wrong, if anything.
std::string try_sum(PeerGroup& group, Backend& backend, const Communicator& host, int64_t count,
                    PeerSum::Way way) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = trial_value(host.rank(), i);
  const Buffer buffer = backend.allocate(values.size() * sizeof(float));
  backend.upload(buffer.data(), values.data(), buffer.bytes());
  const auto deadline = steady_clock::now() + kTrialTime;
  bool late = false;
  group.queued();
  group.peers().sum({buffer.data(), DType::kF32, 1, count}, way);
  group.work().wait({}, [&] {
    if (backend.idle()) return true;
    late = late || steady_clock::now() >= deadline;
    if (late) group.peers().give_up();
    return false;
  });
  if (late) return "a sum did not end: the others' writes do not arrive";
  backend.download(values.data(), buffer.data(), buffer.bytes());
  for (int64_t i = 0; i < count; ++i) {
    float expected = 0;
    for (int r = 0; r < host.size(); ++r) expected += trial_value(r, i);
    if (values[static_cast<size_t>(i)] != expected) return "a sum was wrong: writes get lost";
  }
  return "";
}

std::string try_sums(PeerGroup& group, Backend& backend, const Communicator& host) {
  for (const int64_t count : {1, 5003, 61}) {
    for (const auto way : {PeerSum::Way::kAtOnce, PeerSum::Way::kInParts}) {
      const std::string wrong = try_sum(group, backend, host, count, way);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

}  // namespace

PeerGroup::PeerGroup(std::unique_ptr<PeerSum> peers, std::shared_ptr<QueuedWork> work,
                     std::vector<int> others)
    : peers_(std::move(peers)), work_(std::move(work)), others_(std::move(others)) {
  work_->add(*this);
}

// Not settled only after an error: whatever keeps the stream must let go of it before the memory is
// waited for.
PeerGroup::~PeerGroup() {
  if (!work_->settled()) work_->end();
  work_->remove(*this);
}

void PeerGroup::queued() {
  work_->require_life();
  work_->queued(others_);
}

void PeerGroup::sum(const Tensor& x, int64_t at_once) {
  queued();
  const int64_t count = x.rows * x.cols;
  const int64_t size = element_size(x.dtype);
  const bool small = count * size <= at_once;
  const auto way = small ? PeerSum::Way::kAtOnce : PeerSum::Way::kInParts;
  const int64_t piece = (small ? kSumAtOnceBytes : kSumPieceBytes) / size;
  for (int64_t first = 0; first < count; first += piece) {
    peers_->sum({static_cast<std::byte*>(x.data) + first * size, x.dtype, 1,
                 std::min(piece, count - first)},
                way);
  }
}

std::unique_ptr<PeerGroup> meet_peers(Communicator& host, std::span<const int> ranks,
                                      Backend& backend, std::shared_ptr<QueuedWork> work,
                                      std::string& why) {
  if (host.size() < 2 || host.size() > kMostPeers) {
    why = "that is for groups of 2 to " + std::to_string(kMostPeers) + " ranks";
    return nullptr;
  }
  why.clear();
  // True if no rank failed.
  const auto attempt = [&](const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      if (error.code() == Code::kCancelled || error.code() == Code::kDeadlineExceeded) throw;
      why = error.what();
    }
    const bool well = why.empty();
    const bool all_well = nobody_failed(host, !well);
    if (well && !all_well) why = "another rank of the group cannot reach the others' GPU memory";
    return all_well;
  };
  std::vector<int> others(ranks.begin(), ranks.end());
  others.erase(others.begin() + host.rank());
  std::unique_ptr<PeerGroup> group;
  if (!attempt([&] {
        group = std::make_unique<PeerGroup>(make_peer_sum(backend, host.rank(), host.size()),
                                            std::move(work), others);
      })) {
    return nullptr;
  }
  const std::vector<PeerCard> cards = exchange_cards(host, group->peers().card());
  const bool met = attempt([&] { group->peers().open(cards); }) && attempt([&] {
                     const std::string wrong = try_sums(*group, backend, host);
                     if (!wrong.empty()) throw Error(Code::kFailedPrecondition, wrong);
                     group->work().settle();
                   });
  if (met) return group;
  leave_peers(host, std::move(group));
  return nullptr;
}

void leave_peers(Communicator& host, std::unique_ptr<PeerGroup> peers) {
  peers->work().settle();
  peers->peers().close();
  nobody_failed(host, false);  // until all have closed theirs
}

// What is sent at once grows with the ranks, what is sent in parts does not.
PeerLimits fixed_limits(int ranks) {
  const int64_t at_once = ranks == 2 ? kSumAtOnceBytes : ranks <= 4 ? 128 << 10 : 64 << 10;
  return {at_once, INT64_MAX};
}

namespace {

// ---- the measurement ----

constexpr double kRoundSeconds = 2e-3;
constexpr double kSlow = 5e-3;  // of one sum: once is enough then
constexpr int kMostCalls = 20, kRounds = 5;

// Of one of `calls` sums in a row, which all ranks begin together.
double seconds_of(Communicator& host, QueuedWork& work, int calls,
                  const std::function<void()>& queue) {
  sum_of_all(host, 0);
  const auto begin = steady_clock::now();
  for (int i = 0; i < calls; ++i) queue();
  work.settle();
  return std::chrono::duration<double>(steady_clock::now() - begin).count() / calls;
}

// The ranks' mean of the medians of some rounds.
double measure(Communicator& host, QueuedWork& work, const std::function<void()>& queue) {
  seconds_of(host, work, 1, queue);  // whatever a first one must set up
  const double once = sum_of_all(host, seconds_of(host, work, 1, queue)) / host.size();
  if (once > kSlow) return once;
  const int calls =
      std::clamp(static_cast<int>(kRoundSeconds / std::max(once, 1e-7)), 1, kMostCalls);
  std::vector<double> rounds;
  for (int i = 0; i < kRounds; ++i) rounds.push_back(seconds_of(host, work, calls, queue));
  std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
  return sum_of_all(host, rounds[kRounds / 2]) / host.size();
}

}  // namespace

// What holds at the largest size that was measured holds up to twice that; other sizes in between
// have the way of the next smaller one that was measured.
PeerLimits measure_limits(Communicator& host, Communicator& group, PeerGroup& peers,
                          Backend& backend, std::vector<PeerTiming>& timings) {
  constexpr int64_t kSizes[] = {8 << 10, 32 << 10, 128 << 10, 512 << 10, 2 << 20};
  const Buffer buffer = backend.allocate(static_cast<size_t>(*std::rbegin(kSizes)));
  QueuedWork& work = peers.work();
  PeerLimits limits;
  bool at_once_wins = true;
  for (const int64_t bytes : kSizes) {
    const Tensor x(buffer.data(), DType::kF32, 1, bytes / int64_t{sizeof(float)});
    PeerTiming timing{bytes};
    timing.other_s = measure(host, work, [&] { group.all_reduce_sum(x); });
    timing.in_parts_s = measure(host, work, [&] { peers.sum(x, 0); });
    if (bytes <= kSumAtOnceBytes) {
      timing.at_once_s = measure(host, work, [&] { peers.sum(x, kSumAtOnceBytes); });
    }
    timings.push_back(timing);
    at_once_wins = at_once_wins && timing.at_once_s > 0 && timing.at_once_s <= timing.in_parts_s;
    const double best = at_once_wins ? timing.at_once_s : timing.in_parts_s;
    if (best >= timing.other_s) break;
    limits.most = 2 * bytes;
    if (at_once_wins) limits.at_once = std::min(2 * bytes, kSumAtOnceBytes);
  }
  return limits;
}

namespace {

class PeerCommunicator final : public Communicator {
 public:
  PeerCommunicator(std::unique_ptr<Communicator> group, std::unique_ptr<PeerGroup> peers,
                   const PeerLimits& limits)
      : Communicator(group->share_progress()),
        group_(std::move(group)),
        peers_(std::move(peers)),
        limits_(limits) {}

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }

  void all_reduce_sum(Tensor x) override {
    CHECK(x.dtype == DType::kF32 && (x.rows <= 1 || x.stride == x.cols),
          "a tensor that travels is fp32 and contiguous");
    if (x.rows * x.cols * element_size(x.dtype) > limits_.most) return group_->all_reduce_sum(x);
    peers_->sum(x, limits_.at_once);
  }
  void gather_columns(Tensor all, Tensor mine, std::span<const int> cols, int root) override {
    group_->gather_columns(all, mine, cols, root);
  }
  void broadcast(Tensor x, int root) override { group_->broadcast(x, root); }
  void send(Tensor x, int to) override { group_->send(x, to); }
  void recv(Tensor x, int from) override { group_->recv(x, from); }

  uint64_t reserve(const StagingBytes& bytes, int to) override {
    return group_->reserve(bytes, to) + peers_->peers().bytes();
  }
  void settle() override { peers_->work().settle(); }

  bool can_record(int64_t bytes) const override {
    return bytes <= limits_.most || group_->can_record(bytes);
  }
  void replayed() override { peers_->queued(); }

 private:
  const std::unique_ptr<Communicator> group_;
  const std::unique_ptr<PeerGroup> peers_;
  const PeerLimits limits_;
};

}  // namespace

std::unique_ptr<Communicator> sum_over_peers(std::unique_ptr<Communicator> group,
                                             std::unique_ptr<PeerGroup> peers,
                                             const PeerLimits& limits) {
  return std::make_unique<PeerCommunicator>(std::move(group), std::move(peers), limits);
}

}  // namespace trireme

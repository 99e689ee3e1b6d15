// SPDX-License-Identifier: Apache-2.0
#include "launch/load_display.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "launch/text_table.h"
#include "topology/topology.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kBarInterval{100};
constexpr milliseconds kLineInterval{2000};
constexpr milliseconds kRateWindow{5000};
constexpr int kBarWidth = 30;
// A rank that is so far behind the middle one is named.
constexpr double kLag = 0.1;

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::string bytes(double count) { return format_bytes(static_cast<uint64_t>(count)); }

}  // namespace

LoadDisplay::LoadDisplay(const std::string& verb, bool terminal,
                         std::function<void(const std::string&)> write, Time now)
    : verb_(verb), terminal_(terminal), write_(std::move(write)), start_(now), shown_(now) {}

double LoadDisplay::Rank::share() const {
  if (ready) return 1;
  if (!started) return 0;
  if (progress.bytes_total() == 0) return 1;
  return static_cast<double>(progress.bytes_done()) / static_cast<double>(progress.bytes_total());
}

void LoadDisplay::expect(int rank, const std::string& host) { ranks_[rank].host = host; }

void LoadDisplay::update(int rank, const LoadProgress& progress) {
  Rank& entry = ranks_[rank];
  entry.progress = progress;
  entry.progress.set_bytes_done(std::min(progress.bytes_done(), progress.bytes_total()));
  entry.started = true;
}

void LoadDisplay::ready(int rank) { ranks_[rank].ready = true; }

void LoadDisplay::tick(Time now) {
  if (now - shown_ >= (terminal_ ? kBarInterval : kLineInterval)) show(now, false);
}

void LoadDisplay::finish(Time now) { show(now, true); }

double LoadDisplay::rate(Time now) const {
  if (samples_.empty()) return 0;
  const double elapsed = seconds(now - samples_.front().first);
  const auto moved = static_cast<double>(samples_.back().second - samples_.front().second);
  return elapsed > 0 ? moved / elapsed : 0;
}

// The job is ready when its slowest rank is.
std::string LoadDisplay::time_left(Time now) const {
  double longest = 0;
  for (const auto& [number, rank] : ranks_) {
    const double share = rank.share();
    if (!rank.started || share <= 0) return "";
    longest = std::max(longest, seconds(now - start_) * (1 - share) / share);
  }
  return format_number(", %.0f s left", longest);
}

std::string LoadDisplay::who_lags() const {
  std::vector<double> shares;
  const std::pair<const int, Rank>* slowest = nullptr;
  for (const auto& entry : ranks_) {
    shares.push_back(entry.second.share());
    if (entry.second.ready) continue;
    if (slowest == nullptr || entry.second.share() < slowest->second.share()) slowest = &entry;
  }
  if (slowest == nullptr) return "";
  const auto& [number, rank] = *slowest;
  const std::string who = "; rank " + std::to_string(number) + " on " + rank.host;
  if (!rank.started) return who + " opens the checkpoint";
  switch (rank.progress.phase()) {
    case LOAD_PHASE_ALLOCATING: return who + " allocates its KV cache";
    case LOAD_PHASE_WARMING_UP: return who + " runs its largest steps";
    case LOAD_PHASE_RECORDING: return who + " records its steps of decode";
    default: break;
  }
  std::nth_element(shares.begin(), shares.begin() + static_cast<int64_t>(shares.size() / 2),
                   shares.end());
  if (rank.share() + kLag >= shares[shares.size() / 2]) return "";
  return who + " is slowest: " + format_number("%.0f %%", 100 * rank.share());
}

void LoadDisplay::show(Time now, bool last) {
  shown_ = now;
  uint64_t done = 0;
  uint64_t total = 0;
  bool all_started = true;
  for (const auto& [number, rank] : ranks_) {
    done += rank.progress.bytes_done();
    total += rank.progress.bytes_total();
    all_started = all_started && rank.started;
  }
  samples_.emplace_back(now, done);
  while (now - samples_.front().first > kRateWindow && samples_.size() > 2) samples_.pop_front();

  const double share =
      all_started && total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
  // Read is not ready: the last per cent is shown when all workers have said so.
  const int percent = last ? 100 : std::min(99, static_cast<int>(100 * share));
  std::string line = verb_ + " " + format_number("%3.0f %% ", percent);
  if (terminal_) {
    const auto filled = static_cast<size_t>(kBarWidth * percent / 100);
    line += "[" + std::string(filled, '=') + std::string(kBarWidth - filled, ' ') + "] ";
  }
  const double elapsed = seconds(now - start_);
  if (last) {
    line += bytes(static_cast<double>(done)) + ", " +
            bytes(elapsed > 0 ? static_cast<double>(done) / elapsed : 0) + "/s, " +
            format_number("%.1f s", elapsed);
  } else {
    line += bytes(static_cast<double>(done)) + " of " + bytes(static_cast<double>(total)) + ", " +
            bytes(rate(now)) + "/s" + time_left(now) + who_lags();
  }
  write_((terminal_ ? "\r\033[K" : "") + line + (terminal_ && !last ? "" : "\n"));
}

}  // namespace trireme

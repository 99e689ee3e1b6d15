// SPDX-License-Identifier: Apache-2.0
#include "coordinator/retry.h"

#include <algorithm>
#include <cstdio>
#include <vector>

namespace trireme {
namespace {

using std::chrono::milliseconds;

constexpr size_t kEnds = 17;  // that are remembered
constexpr milliseconds kUnknown{1000};
constexpr milliseconds kLeast{100};
constexpr milliseconds kMost{30000};

std::string in_seconds(milliseconds duration) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", std::chrono::duration<double>(duration).count());
  return text;
}

}  // namespace

TryLater::TryLater(const std::string& message, milliseconds retry_delay)
    : Error(Code::kResourceExhausted, message + "; try again in " + in_seconds(retry_delay)),
      retry_delay_(retry_delay) {}

void RetryPace::ended(Time when) {
  ends_.push_back(when);
  if (ends_.size() > kEnds) ends_.pop_front();
}

milliseconds RetryPace::delay(int32_t places) const {
  if (ends_.size() < 2) return kUnknown;
  // The median: one of the gaps may be a night.
  std::vector<std::chrono::duration<double, std::milli>> gaps;
  for (size_t i = 1; i < ends_.size(); ++i) gaps.emplace_back(ends_[i] - ends_[i - 1]);
  const auto middle = gaps.begin() + static_cast<int64_t>(gaps.size() / 2);
  std::nth_element(gaps.begin(), middle, gaps.end());
  const double delay = middle->count() * std::max(places, 1);
  return milliseconds(static_cast<int64_t>(
      std::clamp(delay, static_cast<double>(kLeast.count()), static_cast<double>(kMost.count()))));
}

}  // namespace trireme

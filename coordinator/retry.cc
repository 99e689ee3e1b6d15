// SPDX-License-Identifier: Apache-2.0
#include "coordinator/retry.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace trireme {
namespace {

using std::chrono::milliseconds;

constexpr size_t kTicks = 16;  // that are remembered
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
  if (ticks_.empty() || ticks_.back().when != when) ticks_.push_back({when, 0});
  ++ticks_.back().ended;
  if (ticks_.size() > kTicks) ticks_.pop_front();
}

milliseconds RetryPace::delay(int32_t places) const {
  if (ticks_.size() < 2) return kUnknown;
  // The median, of two the lesser: one of the gaps may be a night.
  std::vector<double> gaps, counts;
  for (size_t i = 1; i < ticks_.size(); ++i) {
    gaps.push_back(
        std::chrono::duration<double, std::milli>(ticks_[i].when - ticks_[i - 1].when).count());
    counts.push_back(ticks_[i].ended);
  }
  const auto median = [](std::vector<double>& values) {
    const auto middle = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  const double delay = median(gaps) * std::ceil(std::max(places, 1) / median(counts));
  return milliseconds(static_cast<int64_t>(
      std::clamp(delay, static_cast<double>(kLeast.count()), static_cast<double>(kMost.count()))));
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "tests/support/bars.h"

#include <algorithm>
#include <cstdio>

namespace trireme {
namespace {

void print(const std::string& bar, const std::vector<double>& values, double target,
           bool less_is_better) {
  const double value = median(values);
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  std::printf("{\"bar\": \"%s\", \"value\": %.4g, ", bar.c_str(), value);
  if (target > 0) {
    const bool ok = less_is_better ? value <= target : value >= target;
    std::printf("\"target\": %.4g, \"ok\": %s, ", target, ok ? "true" : "false");
  }
  std::printf("\"min\": %.4g, \"max\": %.4g, \"rounds\": %zu}\n", *least, *most, values.size());
  std::fflush(stdout);
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print_bar(const std::string& bar, const std::vector<double>& values, double target) {
  print(bar, values, target, false);
}

void print_limit(const std::string& bar, const std::vector<double>& values, double most) {
  print(bar, values, most, true);
}

}  // namespace trireme

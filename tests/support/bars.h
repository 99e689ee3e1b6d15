// SPDX-License-Identifier: Apache-2.0
// Results of benchmarks, as JSON lines.
#pragma once

#include <string>
#include <vector>

namespace trireme {

double median(std::vector<double> values);

// A JSON line: the median of the rounds, their range, and the target if there is one (above 0).
void print_bar(const std::string& bar, const std::vector<double>& values, double target);

// The same where less is better.
void print_limit(const std::string& bar, const std::vector<double>& values, double most);

}  // namespace trireme

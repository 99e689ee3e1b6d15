// SPDX-License-Identifier: Apache-2.0
// What `trireme top` shows, as lines of text. Pure.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "proto/inference.pb.h"

namespace trireme {

struct TopState {
  std::string server;
  std::optional<v1::ClusterHealth> health;
  std::chrono::milliseconds health_age{0};  // since it came
  std::optional<v1::Load> load;
  std::optional<double> output_rate, prompt_rate;  // tokens per second
  std::string notice;                              // of the connection
};

struct TopStyle {
  int width = 80;  // no line is longer, as long as this is 68 or more
  int height = 0;  // lines at most; 0: as many as there are
  bool colour = false;
  std::string footer;
};

std::vector<std::string> top_lines(const TopState& state, const TopStyle& style);
// One line.
std::string top_json(const TopState& state);

}  // namespace trireme

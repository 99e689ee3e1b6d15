// SPDX-License-Identifier: Apache-2.0
#include "topology/worker_names.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

namespace trireme {
namespace {

std::optional<int> number(const std::string& text) {
  int value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const bool plain = error == std::errc() && stop == end && text[0] != '-';
  return plain ? std::optional(value) : std::nullopt;
}

}  // namespace

std::vector<int> workers_named(const Topology& topology, const std::string& name) {
  std::vector<int> workers;
  const size_t colon = name.rfind(':');
  const std::string host = colon == std::string::npos ? "" : name.substr(0, colon);
  const std::optional<int> index =
      number(colon == std::string::npos ? name : name.substr(colon + 1));
  int on_host = 0;
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    const RankInfo& rank = topology.ranks(worker);
    if (name == "cpu" && rank.device().kind() == DEVICE_KIND_CPU) workers.push_back(worker);
    if (!host.empty() && rank.host() == host && index == on_host++) return {worker};
  }
  if (index && (colon == std::string::npos || host == "cuda") && *index < topology.ranks_size()) {
    return {*index};
  }
  return workers;
}

bool is_called(const Topology& topology, int worker, const std::string& name) {
  const RankInfo& rank = topology.ranks(worker);
  if (name == "cpu") return rank.device().kind() == DEVICE_KIND_CPU;
  const size_t colon = name.rfind(':');
  if (colon == std::string::npos) return number(name) == worker;
  const std::string_view host = std::string_view(name).substr(0, colon);
  if (host != rank.host() && host != "cuda") return false;
  const std::vector<int> workers = workers_named(topology, name);
  return std::find(workers.begin(), workers.end(), worker) != workers.end();
}

std::string known_worker_names(const Topology& topology) {
  const std::string last = std::to_string(topology.ranks_size() - 1);
  return (topology.ranks_size() == 1 ? "0" : "0 to " + last) +
         ", HOST:0 (the first of a host) or cpu";
}

int worker_of(const Topology& topology, int32_t rank) {
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    if (topology.ranks(worker).rank() == rank) return worker;
  }
  return -1;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// What the parts of a placement's picture share.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "launch/svg.h"
#include "proto/cluster.pb.h"

namespace trireme {

constexpr double kPictureWidth = 1280;
constexpr double kPictureMargin = 36;
constexpr const char* kGrey = "#667085";
constexpr const char* kBorder = "#d5d9e2";
constexpr const char* kWarning = "#c8102e";

// Of memory bars.
constexpr const char* kWeightsColour = "#344563";
constexpr const char* kKvColour = "#7f93b8";
constexpr const char* kBuffersColour = "#c3cee2";

std::string stage_colour(int stage);
std::string link_colour(LinkClass link_class);
std::string link_name(LinkClass link_class);        // "NVLink", "network"
std::string link_text(const LinkSpeed& speed);      // "NVLink, 450 GB/s, 7 µs"
std::string layers_text(const StageSpec& stage);    // "L0-13", or "–" for none
std::string device_text(const DeviceInfo& device);  // "H100", "8-thread CPU"

// What one rank does.
struct Role {
  int replica = 0, stage = 0;
  const StageSpec* of = nullptr;
  const ShardSpec* shard = nullptr;
};
using Roles = std::map<int32_t, Role>;  // by rank; those that are spare are absent

// Each draws from y downwards and returns where it ended. Classes of links that were drawn are
// added to `classes`, for the legend.
double draw_pipelines(Svg& svg, double y, const Topology& topology, const Placement& placement,
                      std::set<LinkClass>& classes);
double draw_cluster(Svg& svg, double y, const Topology& topology, const Roles& roles,
                    std::set<LinkClass>& classes);

}  // namespace trireme

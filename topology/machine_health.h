// SPDX-License-Identifier: Apache-2.0
// What a GPU's heat, power, clocks and errors mean.
#pragma once

#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "topology/machine.h"

namespace trireme {

// Sentences for people, the gravest first: "hot: 91 C, clocks 40 % down".
std::vector<std::string> health_notes(const Health& health);

// Why a GPU with this health is not what its siblings are; empty: it is. A busy GPU at its power
// limit is.
std::string health_degradation(const Health& health);

void set_health(const Health& health, DeviceHealth& message);

// Names of NVML's bits: "thermal slowdown", "power cap".
std::vector<std::string> throttle_names(uint64_t reasons);

}  // namespace trireme

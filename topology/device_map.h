// SPDX-License-Identifier: Apache-2.0
// What --device_map says: the name of an algorithm, or a file with a Placement or an HF map.
#pragma once

#include <string>

#include "topology/placement.h"

namespace trireme {

// Reads a Placement from a JSON file (as `plan --json` writes it). Throws kNotFound or
// kInvalidArgument naming the file and the field. Ranges may be left out: what a rank owns is then
// an even cut of its group.
Placement read_device_map(const std::string& path, const ModelSpec& model);

// A file that says all that a placement has: dtype, context and degrees of `options` do not count.
bool is_placement_file(const std::string& device_map);

// By any --device_map but auto: balanced, balanced_low_0, sequential, an HF map or a Placement.
// Throws kInvalidArgument, kNotFound or kResourceExhausted; the placement is valid and fits.
Placement place_by_device_map(const std::string& device_map, const Topology& topology,
                              const ModelSpec& model, const PlacementOptions& options);

// The same, and plan_placement() for auto. Where it does not fit the message ends with what would.
Placement place_model(const std::string& device_map, const Topology& topology,
                      const ModelSpec& model, const PlacementOptions& options);

std::string placement_to_json(const Placement& placement);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Device maps that a user brings: a Placement as JSON.
#pragma once

#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

// Reads a Placement from a JSON file (as `plan --json` writes it). Throws kNotFound or
// kInvalidArgument naming the file and the field. Ranges may be left out: what a rank owns is then
// an even cut of its group.
Placement read_device_map(const std::string& path, const ModelSpec& model);

std::string placement_to_json(const Placement& placement);

}  // namespace trireme

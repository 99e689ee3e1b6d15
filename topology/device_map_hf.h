// SPDX-License-Identifier: Apache-2.0
// Placements from what says only where modules go: an HF map of names to devices, or accelerate's
// algorithms. The layers of one device are a stage.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "topology/device_map_accelerate.h"
#include "topology/placement.h"

namespace trireme {

// {"transformer.encoder.layers.0": 0, "transformer.output_layer": "node7:1", …}: a name covers all
// that is below it, the longest one wins, "" is the whole model. Devices as worker_names.h has
// them; layers on "cpu" are spread over the CPU workers that no other name uses. Names are the
// safetensors' names whatever the checkpoint's format. Throws kInvalidArgument for a name that the
// model has not (with the nearest one), a module without a device, a layer on two devices, a device
// that does not exist, and a device whose modules do not follow one another (with a valid map near
// it). The head of tied embeddings has no weights of its own: where it is said to be means nothing.
Placement place_by_hf_map(const nlohmann::json& map, const std::string& path,
                          const Topology& topology, const ModelSpec& model,
                          const PlacementOptions& options);

// By accelerate's algorithm. GPUs come first, CPU workers take the rest; where there is no GPU, the
// CPU workers are what accelerate calls GPUs. Throws kResourceExhausted for what it would put on
// disk.
Placement place_by_accelerate(AccelerateStrategy strategy, const Topology& topology,
                              const ModelSpec& model, const PlacementOptions& options);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Types of weights by module name, as `--dtype FILE` gives them.
#pragma once

#include <string>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"

namespace trireme {

struct DtypeMap {
  DType dtype = DType::kF32;  // of what no name covers, and of the KV cache
  WeightDtypes weights;
};

// Reads a JSON object of module names, as HF's device maps have them, and types:
//   {"": "bf16", "model.layers.0": "fp32", "model.layers.1.mlp.down_proj": "fp32"}
// A name covers all modules below it, the longest name wins, "" is the whole model (default: the
// checkpoint's type). Names are the safetensors' names whatever the checkpoint's format.
// Throws kNotFound for the file, kInvalidArgument for a name that no module has (with the nearest
// one), a type that is none, and for types that a matrix cannot have together.
DtypeMap read_dtype_map(const std::string& path, const ModelSpec& model);

}  // namespace trireme

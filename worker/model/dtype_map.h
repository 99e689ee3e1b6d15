// SPDX-License-Identifier: Apache-2.0
// Types of weights as `--dtype NAME|FILE` gives them.
#pragma once

#include <string>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"
#include "topology/placement.h"

namespace trireme {

struct DtypeMap {
  DType dtype = DType::kF32;  // of what no name covers, and of the KV cache
  WeightDtypes weights;
};

// Reads a JSON object of module names, as HF's device maps have them, and types:
//   {"": "bf16", "model.layers.0": "fp32", "model.layers.1.mlp.down_proj": "fp32"}
// A name covers all modules below it, the longest name wins, "" is the whole model (default: the
// checkpoint's type). Names are the safetensors' names whatever the checkpoint's format. int8 and
// int4 are of the layers' matrices: below a name with one of them embedding, head and cache are
// bf16, but for a head that is itself named and not tied.
// Throws kNotFound for the file, kInvalidArgument for a name that no module has (with the nearest
// one), a type that is none, and for types that a matrix cannot have together.
DtypeMap read_dtype_map(const std::string& path, const ModelSpec& model);

// `name`: "fp32", "bf16", "fp16"; "int8" or "int4", of the layers' matrices beside bf16; or a file.
void set_dtypes(const std::string& name, const ModelSpec& model, PlacementOptions& options);

}  // namespace trireme

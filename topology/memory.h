// SPDX-License-Identifier: Apache-2.0
// What ranks have and what a placement needs of them: one place says whether it fits.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "topology/placement.h"

namespace trireme {

// Left for the program itself and its libraries; on GPUs usable_memory() leaves more.
constexpr uint64_t kReservedBytes = 256u << 20;

// What a worker may use: its memory, or less if --max_memory says so.
uint64_t memory_of(const Topology& topology, int worker, const PlacementOptions& options);

// Throws kInvalidArgument for a key of --max_memory that names no worker.
void check_memory_keys(const Topology& topology, const PlacementOptions& options);

// Throws kInvalidArgument for a context that the model was not made for.
void check_context(const ModelSpec& model, const PlacementOptions& options);

// Of options to the placement: types, block size, sequences, batch and context. Throws
// kInvalidArgument for a context that the model was not made for.
void set_limits(const ModelSpec& model, const PlacementOptions& options, Placement& placement);

// Sets num_blocks: what max_sequences of `context` positions need, or what the memory left over
// holds if that is less (at least one sequence of `context`; where options say none, the context is
// lowered to what fits), the shards' devices, and their predicted bytes. Throws kResourceExhausted
// naming the rank, what it needs and what it has.
void size_kv_cache(const Topology& topology, const ModelSpec& model,
                   const PlacementOptions& options, Placement& placement);

// Sets the shards' kinds of device and threads, by which their bytes are predicted.
void set_devices(const Topology& topology, Placement& placement);

// All that predict_bytes() counts.
uint64_t predicted_bytes(const ShardSpec& shard);

// What would fit, for the message of a placement that did not: `place` is tried with less context,
// fewer sequences, a smaller micro-batch, 16-bit weights, free degrees, more ranks. The flags to
// type, in a sentence; "" if nothing of it fits. Each of them was placed, none is a guess.
using Place = std::function<Placement(const Topology&, const PlacementOptions&)>;
std::string nearest_fit(const Topology& topology, const ModelSpec& model,
                        const PlacementOptions& options, const Place& place);

}  // namespace trireme

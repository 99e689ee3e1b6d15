// SPDX-License-Identifier: Apache-2.0
// What a rank states of itself before work: its program, its machine, and the model's files as its
// own node sees them. Rank 0 compares what all ranks state (launch/agreement.h).
#pragma once

#include <string>

#include "proto/cluster.pb.h"
#include "proto/preflight.pb.h"

namespace trireme {

// Values are cut to what a person reads, and made printable.
void add_fact(google::protobuf::RepeatedPtrField<Fact>& facts, const std::string& field,
              const std::string& value);

// "sha256 …": for a text that is not to be shown.
std::string digest_text(const std::string& text);

// The link-time id of the running program: equal only for the same bytes of code and data.
std::string build_id();

// Must agree: configuration, tokenizer and index by digest; each file of weights by its size and
// its header's digest. Reads no weights, and never throws for what it cannot read: that is a fact.
void state_model_files(const std::string& path, RankFacts& facts);

// May differ: kernel, driver, device, cores, memory.
void state_machine(const DeviceInfo& device, RankFacts& facts);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// The data plane of a replica without a coordinator: every rank runs the same script of
// micro-batches, and the reporter's logits of every row are kept. The scripts force the reference's
// tokens, so that no rank waits for another's draw.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"
#include "worker/comm/communicator.h"

namespace trireme {

struct RankJobOptions {
  std::string model_path;
  std::string dtype = "fp32";  // or a file as --dtype takes it
  std::string isa = "auto";
  int32_t tp = 1;
  int32_t pp = 1;
  int32_t threads = 1;
  std::vector<DeviceKind> devices;  // of the ranks, stage by stage; empty: CPUs
  int32_t max_sequences = 8;
  int32_t max_batch_tokens = 256;
};

// Logits of a row by (sequence, position).
using Logits = std::map<std::pair<uint64_t, int32_t>, std::vector<float>>;

// The assignment of one rank (from 1) in a single replica of tp x pp ranks.
std::vector<Assign> make_assignments(const RankJobOptions& options);

// Runs one rank's part of the script; logits are filled on the reporter only.
Logits run_rank(const std::string& model_path, const Assign& assign,
                const std::vector<MicroBatch>& script, Transport& transport);

// All ranks as threads of this process; the first error of any rank is thrown again.
Logits run_local(const RankJobOptions& options, const std::vector<MicroBatch>& script);

// A script that runs `tokens` as sequence 1: positions below prompt_length in chunks of `chunk` (0:
// whole), the rest one at a time; `company` other sequences of seeded random ids run in the same
// micro-batches.
std::vector<MicroBatch> make_script(const ModelSpec& model, const std::vector<int32_t>& tokens,
                                    int32_t prompt_length, int32_t chunk, int32_t company);

}  // namespace trireme

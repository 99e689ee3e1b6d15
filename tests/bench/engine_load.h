// SPDX-License-Identifier: Apache-2.0
// Requests to a job's engine, and how fast it answers them; for benchmarks.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/job.h"

namespace trireme {

struct DecodeLoad {
  int sequences = 1;
  int32_t prompt = 16;  // tokens of each
  int32_t warm = 4;     // of each answer, before the clock starts
  int32_t timed = 24;   // of each, timed: about so many
};

// Tokens per second of all sequences together while all of them answer. Throws kInternal with the
// reason where a request fails.
double decode_rate(Job& job, const DecodeLoad& load);

// Prompt tokens per second of one prompt alone, up to its first token.
double prefill_rate(Job& job, int32_t tokens);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Logits that ranks computed beside those of a reference; what differs too much fails the test.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/support/rank_job.h"
#include "tests/support/reference.h"

namespace trireme {

constexpr double kFp32Error = 2e-4;      // absolute, of a logit
constexpr uint64_t kGoldenSequence = 1;  // the one of a script that is looked at

// The prompt, and behind it the greedy tokens but the last, which is drawn from the row before it
// and never fed.
std::vector<int32_t> forced_tokens(const ReferencePrompt& prompt);

// Returns the largest absolute error of a logit.
double compare_logits(const ReferencePrompt& prompt, const Logits& logits, bool fp32);

// Forced decoding: at each step our best must be the reference's where the margin is not within
// tolerance. Returns the number of steps compared.
int compare_greedy(const ReferencePrompt& prompt, const Logits& logits, double tolerance);

}  // namespace trireme

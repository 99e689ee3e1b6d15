// SPDX-License-Identifier: Apache-2.0
// `trireme generate`: answers without a server.
#pragma once

#include "launch/options.h"

namespace trireme {

// Answers prompts offline, over the same job and engine as serve; results on stdout in the order of
// the input. Returns 0; throws Error.
int generate(const Options& options);

}  // namespace trireme

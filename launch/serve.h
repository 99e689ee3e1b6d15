// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "launch/options.h"

namespace trireme {

// Serves until a signal, a Drain call or the loss of the last replica ends it. Returns 0 when it
// was asked to end; throws Error otherwise. REQUIRES: the process has no other thread yet.
int serve(const Options& options);

}  // namespace trireme

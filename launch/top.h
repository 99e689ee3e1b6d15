// SPDX-License-Identifier: Apache-2.0
// `trireme top`: a server's ranks and load, live.
#pragma once

#include "launch/options.h"

namespace trireme {

// Shows a server's ranks and load: live on a terminal, which is left as it was found, until q or a
// signal; elsewhere once, or as lines of JSON until the server ends. Returns 0; throws Error where
// no server answers, or it ended.
int top(const TopFlags& flags);

}  // namespace trireme

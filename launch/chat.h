// SPDX-License-Identifier: Apache-2.0
// `trireme chat`: the worked example of a client.
#pragma once

#include "launch/options.h"

namespace trireme {

// Asks a server one question, or holds a conversation on stdin and stdout. Knows nothing of the
// server but the proto. Returns 0; throws Error. REQUIRES: no other thread yet.
int chat(const ChatFlags& flags);

}  // namespace trireme

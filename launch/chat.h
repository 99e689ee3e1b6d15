// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "launch/options.h"

namespace trireme {

// Asks a server one question, or holds a conversation on stdin and stdout. Knows nothing of the
// server but the proto: the worked example of a client. Returns 0; throws Error. REQUIRES: no other
// thread yet.
int chat(const ChatFlags& flags);

}  // namespace trireme

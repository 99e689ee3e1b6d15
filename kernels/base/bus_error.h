// SPDX-License-Identifier: Apache-2.0
// Touching a map whose file has become shorter, whose storage failed or whose file system is full
// raises SIGBUS. The process cannot go on, but it can say which file it was.
#pragma once

namespace trireme {

// From now on such an end is told on stderr, with status 1. Any thread; again is nothing.
void explain_bus_errors();

}  // namespace trireme

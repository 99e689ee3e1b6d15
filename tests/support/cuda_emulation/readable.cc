// SPDX-License-Identifier: Apache-2.0
// The host reads an emulated device's memory, unless it is hidden.
#include "tests/support/readable_memory.h"

namespace trireme {

bool gpu_memory_is_readable() { return true; }

}  // namespace trireme

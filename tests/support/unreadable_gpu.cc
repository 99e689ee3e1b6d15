// SPDX-License-Identifier: Apache-2.0
#include "tests/support/readable_memory.h"

namespace trireme {

bool gpu_memory_is_readable() { return false; }

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// An emulated device reads the host's memory, and the host the device's, unless it is hidden.
#include <cstdlib>
#include <new>

#include "tests/support/readable_memory.h"

namespace trireme {

void* allocate_readable(size_t bytes) {
  void* const data = std::malloc(bytes);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
void free_readable(void* data) { std::free(data); }
bool gpu_memory_is_readable() { return true; }

}  // namespace trireme

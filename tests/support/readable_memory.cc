// SPDX-License-Identifier: Apache-2.0
#include "tests/support/readable_memory.h"

#include <cstdlib>
#include <new>

namespace trireme {

void* allocate_readable(size_t bytes) {
  void* const data = std::malloc(bytes);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
void free_readable(void* data) { std::free(data); }

}  // namespace trireme

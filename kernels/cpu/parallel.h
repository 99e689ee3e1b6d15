// SPDX-License-Identifier: Apache-2.0
// The one place that starts threads for a kernel.
#pragma once

#include <omp.h>

#include <cstdint>

namespace trireme::cpu {

// Calls fn(index, thread) once for every index in [0, count), thread in [0, threads). fn must not
// throw, and what it writes must not depend on which thread takes which index. Indices are handed
// out one by one, so that a thread which the machine disturbs takes fewer. One thread needs no
// OpenMP: ranks that are threads of one process then have no pools that compete for the cores.
template <typename Function>
void parallel_for(int threads, int64_t count, const Function& fn) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) fn(i, 0);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) fn(i, thread);
  }
}

}  // namespace trireme::cpu

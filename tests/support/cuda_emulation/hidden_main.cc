// SPDX-License-Identifier: Apache-2.0
// Tests of code that must not touch a device's memory from the host.
#include <gtest/gtest.h>

#include "tests/support/cuda_emulation/memory.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  trireme::cuda::emulation::hide_memory();
  trireme::cuda::emulation::set_num_devices(8);
  return RUN_ALL_TESTS();
}

// SPDX-License-Identifier: Apache-2.0
// The memory of the emulated devices, and their progress. Thread-safe.
#pragma once

#include <cstdint>

namespace trireme::cuda::emulation {

// From now on the host cannot touch it, as on a GPU: whoever tries is ended by a signal. Without
// it the host can, so that tests of single operations may look at it. Called before all else.
void hide_memory();

// While one lives the memory can be touched by its thread: what runs on the device has one.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;

 private:
  int rights_before_ = 0;
};

// Bytes of each device that others use, as if another process had them. The program over emulated
// devices takes them from TRIREME_EMULATED_MEMORY_TAKEN.
void take_memory(uint64_t bytes);

// The device of this thread.
void choose_device(int device);
int chosen_device();

constexpr uint64_t kMemoryBytes = uint64_t{8} << 30;  // of each

// Whether events and streams stay incomplete, as if a kernel waited for ever.
void stall_events(bool stalled);

// How many devices the process has.
void set_num_devices(int count);

}  // namespace trireme::cuda::emulation

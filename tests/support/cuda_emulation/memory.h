// SPDX-License-Identifier: Apache-2.0
// The memory of the emulated devices, and their progress. Thread-safe.
#pragma once

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

// Whether events and streams stay incomplete, as if a kernel waited for ever.
void stall_events(bool stalled);

// How many devices the process has.
void set_num_devices(int count);

}  // namespace trireme::cuda::emulation

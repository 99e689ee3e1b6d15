// SPDX-License-Identifier: Apache-2.0
// The memory of the emulated devices, and their progress. Thread-safe.
#pragma once

namespace trireme::cuda::emulation {

// From now on the host cannot touch it, as on a GPU: whoever tries is ended by a signal. Before
// that it can, so that tests of single operations may look at it.
void hide_memory();

// While one lives the memory can be touched: what runs on the device has one.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
};

// Whether events stay incomplete, as if a kernel waited for ever.
void stall_events(bool stalled);

}  // namespace trireme::cuda::emulation

// SPDX-License-Identifier: Apache-2.0
// What the cost model needs of a device: a table of device types (topology/devices.cc, with
// provenance), and what was measured of this one.
#pragma once

#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

struct DeviceCost {
  double bandwidth = 0;        // bytes/s
  double flops = 0;            // 16-bit FLOP/s
  double em = 1, ea = 1;       // share of the bandwidth that matrices and the KV cache reach
  double ec = 1;               // share of the FLOP/s
  double launch_s = 0;         // t0 of a layer's matrices
  double p = 1.5;              // smoothing between memory and compute
  double decode_layer_s = 0;   // rest of a layer, of a decode step
  double prefill_layer_s = 0;  // and of a chunk of a prompt
  std::string type;            // row of the table
  bool known = true;           // false: no row fits; the slowest of its kind is assumed
};

// The device's row, found by its type or name (CPUs by instruction set, times threads), with the
// fields of DeviceInfo.speed in place of the row's.
DeviceCost device_cost(const DeviceInfo& device);

// Memory that a device type has, for topologies that do not say it; 0: not known.
double nominal_memory(const std::string& type);

}  // namespace trireme

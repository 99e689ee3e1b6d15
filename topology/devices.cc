// SPDX-License-Identifier: Apache-2.0
#include "topology/devices.h"

#include <algorithm>
#include <cctype>

namespace trireme {
namespace {

struct Row {
  const char* type;
  const char* pattern;  // in the device's own name, lower case
  double memory, bandwidth, flops, em, ec, p;
};

// Memory, bandwidth and FLOP/s are the makers' (dense 16-bit with 32-bit accumulation). em, ec and
// p by provenance:
//   fit    least squares of Vidur's 1,044 measured matrix times per device (tests/topology/
//          cost_measured_test.cc fits them again; A100, A40, H100)
//   helix  per-layer times that Helix published for LLaMA-2-70B (T4, L4, V100, A100-40)
//   guess  between its neighbours of the same generation; a micro-benchmark should replace it
// Rows with longer patterns come first: the first match wins.
constexpr Row kGpus[] = {
    {"GB200", "gb200", 186e9, 8000e9, 2500e12, .85, .70, 1.25},            // guess
    {"B200", "b200", 180e9, 8000e9, 2250e12, .85, .70, 1.25},              // guess
    {"H200", "h200", 141e9, 4800e9, 989e12, .90, .74, 1.25},               // guess
    {"H100-PCIe", "h100 pcie", 80e9, 2000e9, 756e12, .90, .70, 1.25},      // guess
    {"H100", "h100", 80e9, 3350e9, 989e12, .95, .74, 1.25},                // fit
    {"A100-40", "a100-sxm4-40gb", 40e9, 1555e9, 312e12, .86, .747, 1.29},  // helix
    {"A100-40", "a100-pcie-40gb", 40e9, 1555e9, 312e12, .86, .747, 1.29},  // helix
    {"A100", "a100", 80e9, 2039e9, 312e12, .863, .747, 1.29},              // fit
    {"A800", "a800", 80e9, 2039e9, 312e12, .863, .747, 1.29},              // as A100
    {"L40S", "l40s", 48e9, 864e9, 362e12, .82, .55, 1.4},                  // guess
    {"A40", "a40", 48e9, 696e9, 149.7e12, .807, .778, 1.72},               // fit
    {"A10", "a10", 24e9, 600e9, 125e12, .80, .55, 1.5},                    // guess
    {"L4", "l4", 24e9, 300e9, 121e12, .83, .40, 1.5},                      // helix
    {"T4", "t4", 16e9, 320e9, 65e12, .75, .39, 1.5},                       // helix
    {"V100-16", "v100-sxm2-16gb", 16e9, 900e9, 125e12, .83, .74, 1.3},     // helix
    {"V100-16", "v100-pcie-16gb", 16e9, 900e9, 125e12, .83, .74, 1.3},     // helix
    {"V100", "v100", 32e9, 900e9, 125e12, .83, .74, 1.3},                  // helix
    {"RTX6000-PRO", "rtx pro 6000", 96e9, 1597e9, 503e12, .83, .65, 1.4},  // guess
    {"R4090", "4090", 24e9, 1008e9, 165e12, .85, .75, 1.4},                // guess
    {"R3090", "3090", 24e9, 936e9, 71e12, .80, .75, 1.4},                  // guess
};

constexpr double kGpuLaunch = 12e-6;  // with CUDA graphs; 27 to 37 us without
constexpr double kGpuDecodeLayer = 10e-6;
constexpr double kGpuPrefillLayer = 30e-6;

// A CPU rank by instruction set: bytes/s and FLOP/s of one thread, and what a node's memory gives
// all of them. Measured on a shared Xeon with AMX (README, "Numbers"); AVX2 and AVX-512 from their
// vector width. Real machines differ by factors: measure.
struct CpuRow {
  const char* isa;
  double bandwidth, flops;
};
constexpr CpuRow kCpus[] = {{"amx", 14e9, 800e9},
                            {"avx512_bf16", 12e9, 150e9},
                            {"avx512", 12e9, 60e9},
                            {"avx2", 10e9, 30e9}};
constexpr double kNodeBandwidth = 300e9;

std::string lower(const std::string& text) {
  std::string result = text;
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

const Row* find_gpu(const std::string& type, const std::string& name) {
  for (const Row& row : kGpus) {
    if (type == row.type) return &row;
  }
  const std::string small = lower(name);
  for (const Row& row : kGpus) {
    // A whole word, or "l4" would be found in "l40".
    const size_t at = small.find(row.pattern);
    if (at == std::string::npos) continue;
    const size_t end = at + std::string(row.pattern).size();
    if ((at > 0 && std::isalnum(static_cast<unsigned char>(small[at - 1]))) ||
        (end < small.size() && std::isalnum(static_cast<unsigned char>(small[end])))) {
      continue;
    }
    return &row;
  }
  return nullptr;
}

DeviceCost gpu_cost(const DeviceInfo& device) {
  const Row* row = find_gpu(device.type(), device.name());
  DeviceCost cost;
  cost.known = row != nullptr;
  if (row == nullptr) {
    row = find_gpu("T4", "");
  }
  cost.type = row->type;
  cost.bandwidth = row->bandwidth;
  cost.flops = row->flops;
  cost.em = cost.ea = row->em;
  cost.ec = row->ec;
  cost.p = row->p;
  cost.launch_s = kGpuLaunch;
  cost.decode_layer_s = kGpuDecodeLayer;
  cost.prefill_layer_s = kGpuPrefillLayer;
  return cost;
}

DeviceCost cpu_cost(const DeviceInfo& device) {
  DeviceCost cost;
  const CpuRow* row = std::find_if(std::begin(kCpus), std::end(kCpus), [&](const CpuRow& r) {
    return device.type() == r.isa || device.isa() == r.isa;
  });
  cost.known = row != std::end(kCpus);
  if (!cost.known) row = std::end(kCpus) - 1;
  const double threads = std::max(1, device.threads());
  cost.type = row->isa;
  cost.bandwidth = std::min(kNodeBandwidth, threads * row->bandwidth);
  cost.flops = threads * row->flops;
  cost.p = 1.3;
  cost.launch_s = cost.decode_layer_s = 30e-6;
  cost.prefill_layer_s = 60e-6;
  return cost;
}

}  // namespace

DeviceCost device_cost(const DeviceInfo& device) {
  DeviceCost cost = device.kind() == DEVICE_KIND_CUDA ? gpu_cost(device) : cpu_cost(device);
  const DeviceSpeed& speed = device.speed();
  const auto override_with = [](double& value, double given) {
    if (given > 0) value = given;
  };
  override_with(cost.bandwidth, speed.memory_bandwidth_bytes_per_s());
  override_with(cost.flops, speed.flops_16bit_per_s());
  override_with(cost.em, speed.memory_efficiency());
  override_with(cost.ea, speed.memory_efficiency());
  override_with(cost.ea, speed.attention_memory_efficiency());
  override_with(cost.ec, speed.compute_efficiency());
  override_with(cost.launch_s, speed.launch_s());
  override_with(cost.p, speed.smoothing_exponent());
  override_with(cost.decode_layer_s, speed.decode_layer_s());
  override_with(cost.prefill_layer_s, speed.prefill_layer_s());
  if (speed.memory_bandwidth_bytes_per_s() > 0 && speed.flops_16bit_per_s() > 0) cost.known = true;
  return cost;
}

double nominal_memory(const std::string& type) {
  for (const Row& row : kGpus) {
    if (type == row.type) return row.memory;
  }
  return 0;
}

}  // namespace trireme

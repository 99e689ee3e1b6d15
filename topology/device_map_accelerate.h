// SPDX-License-Identifier: Apache-2.0
// The device maps of Hugging Face's accelerate (infer_auto_device_map of 1.15), step for step, for
// comparison and for those who ask for them. They count weights only: no KV cache, activations,
// links or time. tests/data/make_device_map_cases.py compares with the original.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"

namespace trireme {

enum class AccelerateStrategy { kBalanced, kBalancedLow0, kSequential };

// "balanced", "balanced_low_0", "sequential"
std::optional<AccelerateStrategy> parse_accelerate_strategy(const std::string& name);

// One device of accelerate's max_memory, in its order: GPUs, then `cpu`.
struct AccelerateDevice {
  double bytes = 0;
  bool offload = false;  // `cpu`: takes what the GPUs have no room for
};

constexpr int kAccelerateDisk = -1;

// The budgets as get_balanced_memory() shrinks them; untouched by kSequential. `given`: the user
// has set them (one GPU alone keeps a tenth free otherwise).
std::vector<AccelerateDevice> accelerate_budgets(const ModelSpec& model, DType dtype,
                                                 AccelerateStrategy strategy,
                                                 std::vector<AccelerateDevice> devices, bool given);

// The device of each of model.modules() under these budgets, or kAccelerateDisk; one more, the
// last, for model.rotary().
std::vector<int> accelerate_map(const ModelSpec& model, DType dtype,
                                const std::vector<AccelerateDevice>& budgets);

}  // namespace trireme

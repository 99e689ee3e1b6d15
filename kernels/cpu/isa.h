// SPDX-License-Identifier: Apache-2.0
// The instruction sets that have kernels of their own.
#pragma once

#include <string>

namespace trireme::cpu {

// Slowest first; each includes what the ones before it need.
enum class Isa { kAvx2, kAvx512, kAvx512Bf16, kAmx };

const char* isa_name(Isa isa);

// The path for BackendOptions::isa: "auto" is the fastest that this machine runs. Throws
// kInvalidArgument for a name that is none, kFailedPrecondition for one this machine cannot run.
Isa choose_isa(const std::string& name);

}  // namespace trireme::cpu

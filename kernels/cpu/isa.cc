// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/error.h"

namespace trireme {
namespace cpu {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Linux hands the tile registers only to a process that asked for them (once, for all its threads).
bool has_amx() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct IsaEntry {
  Isa isa;
  const char* name;
  bool (*present)();
};

constexpr std::array kIsas = {
    IsaEntry{Isa::kAvx2, "avx2", has_avx2},
    IsaEntry{Isa::kAvx512, "avx512", has_avx512},
    IsaEntry{Isa::kAvx512Bf16, "avx512_bf16", has_avx512_bf16},
    IsaEntry{Isa::kAmx, "amx", has_amx},
};

}  // namespace

const char* isa_name(Isa isa) { return kIsas[static_cast<size_t>(isa)].name; }

Isa choose_isa(const std::string& name) {
  const std::span<const std::string> present = cpu_isas();
  if (present.empty()) {
    throw Error(Code::kFailedPrecondition,
                "cannot make a CPU backend: this processor lacks AVX2, FMA or F16C, which every "
                "kernel needs; run on a machine of 2013 or later");
  }
  const std::string& wanted = name == "auto" ? present.back() : name;
  std::string list;
  for (const std::string& isa : present) list += (list.empty() ? "" : ", ") + isa;
  for (const IsaEntry& entry : kIsas) {
    if (wanted != entry.name) continue;
    for (const std::string& isa : present) {
      if (isa == wanted) return entry.isa;
    }
    throw Error(Code::kFailedPrecondition, "cannot use the instruction set '" + name +
                                               "': this machine runs " + list + "; choose one");
  }
  throw Error(Code::kInvalidArgument,
              "unknown instruction set '" + name + "': this machine runs auto, " + list);
}

}  // namespace cpu

std::span<const std::string> cpu_isas() {
  static const std::vector<std::string> present = [] {
    std::vector<std::string> names;
    for (const cpu::IsaEntry& entry : cpu::kIsas) {
      if (entry.present()) names.emplace_back(entry.name);
    }
    return names;
  }();
  return present;
}

}  // namespace trireme

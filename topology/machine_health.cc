// SPDX-License-Identifier: Apache-2.0
#include "topology/machine_health.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace trireme {
namespace {

struct Reason {
  uint64_t bit;
  const char* name;
  bool grave;  // the GPU is slower than it should be
};
constexpr uint64_t kIdle = 0x1;
constexpr uint64_t kThermal = 0x20 | 0x40;
constexpr std::array kReasons = {
    Reason{0x1, "idle", false},
    Reason{0x2, "clocks set by an administrator", false},
    Reason{0x4, "power cap", false},
    Reason{0x8, "hardware slowdown", true},
    Reason{0x10, "sync boost", false},
    Reason{0x20, "thermal slowdown", true},
    Reason{0x40, "hardware thermal slowdown", true},
    Reason{0x80, "power brake", true},
    Reason{0x100, "display clocks", false},
};

// XIDs after which a GPU, or its memory or links, are not to be trusted until it is reset.
constexpr std::array<int32_t, 10> kGraveXids = {48, 61, 62, 63, 64, 74, 79, 94, 95, 119};

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

// Percent below the highest clock; 0 where an idle GPU chose to be.
double clocks_down(const Health& health) {
  if (!health.sm_clock_mhz || !health.max_sm_clock_mhz || *health.max_sm_clock_mhz <= 0) return 0;
  if ((health.throttle_reasons.value_or(0) & kIdle) != 0) return 0;
  return std::max(0.0, 100 * (1 - *health.sm_clock_mhz / *health.max_sm_clock_mhz));
}

bool is_hot(const Health& health) {
  if ((health.throttle_reasons.value_or(0) & kThermal) != 0) return true;
  return health.temperature_c && health.slowdown_c && *health.temperature_c >= *health.slowdown_c;
}

std::string heat(const Health& health) {
  std::string text = "hot";
  if (health.temperature_c) text += ": " + format("%.0f C", *health.temperature_c);
  if (clocks_down(health) >= 1) text += ", clocks " + format("%.0f %% down", clocks_down(health));
  return text;
}

// What slows it down and is not heat.
std::string slowdown(const Health& health) {
  std::string names;
  for (const Reason& reason : kReasons) {
    if (!reason.grave || (reason.bit & kThermal) != 0) continue;
    if ((health.throttle_reasons.value_or(0) & reason.bit) == 0) continue;
    // The general bit comes with the one that says why.
    if (reason.bit == 0x8 && is_hot(health)) continue;
    names += (names.empty() ? "" : ", ") + std::string(reason.name);
  }
  if (names.empty()) return "";
  const double down = clocks_down(health);
  return names + (down >= 1 ? ", clocks " + format("%.0f %% down", down) : "");
}

void append(std::string& text, const std::string& more) {
  if (!more.empty()) text += (text.empty() ? "" : "; ") + more;
}

std::string grave_xids(const Health& health) {
  std::string numbers;
  for (const int32_t xid : health.xids) {
    if (std::find(kGraveXids.begin(), kGraveXids.end(), xid) == kGraveXids.end()) continue;
    numbers += (numbers.empty() ? "XID " : ", ") + std::to_string(xid);
  }
  return numbers.empty() ? "" : numbers + " in the kernel's log";
}

}  // namespace

std::vector<std::string> throttle_names(uint64_t reasons) {
  std::vector<std::string> names;
  for (const Reason& reason : kReasons) {
    if ((reasons & reason.bit) != 0) names.emplace_back(reason.name);
  }
  return names;
}

std::string health_degradation(const Health& health) {
  std::string text;
  if (is_hot(health)) append(text, heat(health));
  append(text, slowdown(health));
  if (health.row_remap_failed) append(text, "memory rows could not be remapped");
  for (const std::string& fault : health.fabric_faults) append(text, "fabric: " + fault);
  append(text, grave_xids(health));
  return text;
}

std::vector<std::string> health_notes(const Health& health) {
  std::vector<std::string> notes;
  const std::string grave = health_degradation(health);
  if (!grave.empty()) notes.push_back(grave);
  if ((health.throttle_reasons.value_or(0) & 0x4) != 0 && clocks_down(health) >= 1) {
    std::string text = "at its power limit";
    if (health.power_limit_w) text += " of " + format("%.0f W", *health.power_limit_w);
    notes.push_back(text + ", clocks " + format("%.0f %% down", clocks_down(health)));
  }
  if (health.ecc_uncorrected.value_or(0) > 0) {
    notes.push_back(std::to_string(*health.ecc_uncorrected) +
                    " uncorrected memory errors since the driver started");
  }
  if (health.row_remap_pending)
    notes.emplace_back("memory rows wait to be remapped: reset the GPU");
  const bool all_grave = std::all_of(health.xids.begin(), health.xids.end(), [](int32_t xid) {
    return std::find(kGraveXids.begin(), kGraveXids.end(), xid) != kGraveXids.end();
  });
  if (!all_grave) {
    std::string numbers;
    for (const int32_t xid : health.xids) numbers += " " + std::to_string(xid);
    notes.push_back("the kernel's log has XID" + numbers);
  }
  if (!health.fabric_state.empty() && health.fabric_state != "completed") {
    notes.push_back("its NVLink fabric is " + health.fabric_state);
  }
  return notes;
}

void set_health(const Health& health, DeviceHealth& message) {
  if (health.temperature_c) message.set_temperature_c(*health.temperature_c);
  if (health.slowdown_c) message.set_slowdown_c(*health.slowdown_c);
  if (health.power_w) message.set_power_w(*health.power_w);
  if (health.power_limit_w) message.set_power_limit_w(*health.power_limit_w);
  if (health.sm_clock_mhz) message.set_sm_clock_mhz(*health.sm_clock_mhz);
  if (health.max_sm_clock_mhz) message.set_max_sm_clock_mhz(*health.max_sm_clock_mhz);
  for (const std::string& name : throttle_names(health.throttle_reasons.value_or(0))) {
    message.add_throttle_reasons(name);
  }
  if (health.ecc_uncorrected) message.set_ecc_uncorrected(*health.ecc_uncorrected);
  if (health.ecc_corrected) message.set_ecc_corrected(*health.ecc_corrected);
  for (const int32_t xid : health.xids) message.add_xids(xid);
}

}  // namespace trireme

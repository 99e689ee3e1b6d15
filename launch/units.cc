// SPDX-License-Identifier: Apache-2.0
// Numbers with units, as flags have them.
#include <array>
#include <charconv>
#include <limits>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "launch/options.h"

namespace trireme {
namespace {

// A number and its unit, both as they stand in `text`.
std::pair<uint64_t, std::string> split_unit(const std::string& text, const std::string& flag,
                                            const std::string& allowed) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc()) bad_value(flag, text, allowed);
  return {value, std::string(stop, end)};
}

uint64_t scaled(uint64_t value, uint64_t unit, uint64_t most, const std::string& text,
                const std::string& flag, const std::string& allowed) {
  if (value > most / unit) bad_value(flag, text, allowed);
  return value * unit;
}

}  // namespace

void bad_value(const std::string& flag, const std::string& text, const std::string& allowed) {
  throw Error(Code::kInvalidArgument, flag + ": found \"" + text + "\", allowed: " + allowed);
}

uint64_t parse_bytes(const std::string& text, const std::string& flag) {
  const std::string allowed = "a whole number of bytes, or with KiB, MiB, GiB or TiB: 10GiB";
  const auto [value, unit] = split_unit(text, flag, allowed);
  constexpr std::array<const char*, 5> kUnits{"", "KiB", "MiB", "GiB", "TiB"};
  for (size_t i = 0; i < kUnits.size(); ++i) {
    if (unit != kUnits[i]) continue;
    return scaled(value, uint64_t{1} << (10 * i), std::numeric_limits<uint64_t>::max(), text, flag,
                  allowed);
  }
  bad_value(flag, text, allowed);
}

std::chrono::milliseconds parse_duration(const std::string& text, const std::string& flag) {
  const std::string allowed = "a whole number with ms, s or min, up to 24 hours: 500ms, 10s, 2min";
  const auto [value, unit] = split_unit(text, flag, allowed);
  constexpr uint64_t kMost = 24 * 3600 * 1000;
  constexpr std::array<std::pair<const char*, uint64_t>, 3> kUnits{
      {{"ms", 1}, {"s", 1000}, {"min", 60000}}};
  for (const auto& [name, factor] : kUnits) {
    if (unit == name)
      return std::chrono::milliseconds(scaled(value, factor, kMost, text, flag, allowed));
  }
  bad_value(flag, text, allowed);
}

}  // namespace trireme

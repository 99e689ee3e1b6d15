// SPDX-License-Identifier: Apache-2.0
#include "topology/machine_text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace trireme {

std::string_view trim(std::string_view text) {
  constexpr const char* kBlank = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) return "";
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

std::vector<std::string_view> split_fields(std::string_view text, char separator) {
  std::vector<std::string_view> fields;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    fields.push_back(text.substr(begin, end - begin));
    if (end == text.npos) return fields;
    begin = end + 1;
  }
}

std::optional<int64_t> read_integer(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
    if (text.starts_with("-")) return std::nullopt;
  }
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, base);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::optional<double> read_number(std::string_view text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value)) return std::nullopt;
  return value + 0.0;  // of -0 too: JSON's readers and writers do not agree about it
}

std::string read_pci_id(std::string_view text) {
  // From the end: function, device, bus, and a domain of one to eight digits.
  constexpr std::string_view kTail = "XX:XX.X";
  if (text.size() < kTail.size() + 2 || text.size() > kTail.size() + 9) return "";
  const size_t tail = text.size() - kTail.size();
  std::string id;
  for (size_t i = 0; i < text.size(); ++i) {
    const char wanted = i < tail - 1 ? 'X' : i == tail - 1 ? ':' : kTail[i - tail];
    const bool digit = std::isxdigit(static_cast<unsigned char>(text[i])) != 0;
    if (wanted == 'X' ? !digit : text[i] != wanted) return "";
    id += static_cast<char>(std::tolower(static_cast<unsigned char>(text[i])));
  }
  const size_t digits = tail - 1;
  size_t zeros = 0;
  while (digits - zeros > 4 && id[zeros] == '0') ++zeros;
  return digits < 4 ? std::string(4 - digits, '0') + id : id.substr(zeros);
}

std::optional<std::vector<int32_t>> read_core_mask(std::string_view text) {
  std::vector<int32_t> cores;
  const std::vector<std::string_view> words = split_fields(text, ',');
  if (words.size() > kMaxCores / 32) return std::nullopt;
  for (size_t i = 0; i < words.size(); ++i) {
    std::string_view word = trim(words[words.size() - 1 - i]);
    if (word.starts_with("0x")) word.remove_prefix(2);
    if (word.empty()) continue;
    uint32_t bits = 0;
    const char* const end = word.data() + word.size();
    const auto [stop, error] = std::from_chars(word.data(), end, bits, 16);
    if (error != std::errc() || stop != end) return std::nullopt;
    for (int32_t bit = 0; bit < 32; ++bit) {
      if (((bits >> bit) & 1) != 0) cores.push_back(static_cast<int32_t>(i) * 32 + bit);
    }
  }
  return cores;
}

std::optional<std::vector<int32_t>> read_core_list(std::string_view text) {
  std::vector<int32_t> cores;
  text = trim(text);
  if (text.empty()) return cores;
  for (const std::string_view range : split_fields(text, ',')) {
    const size_t dash = range.find('-');
    const auto first = read_integer(range.substr(0, dash));
    const auto last = dash == range.npos ? first : read_integer(range.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last >= kMaxCores) return std::nullopt;
    for (int64_t core = *first; core <= *last; ++core) cores.push_back(static_cast<int32_t>(core));
    if (cores.size() > kMaxCores) return std::nullopt;
  }
  return cores;
}

std::string write_core_mask(const std::vector<int32_t>& cores) {
  const int32_t highest = cores.empty() ? 0 : *std::max_element(cores.begin(), cores.end());
  std::vector<uint32_t> words(static_cast<size_t>(highest) / 32 + 1);
  for (const int32_t core : cores)
    words[static_cast<size_t>(core) / 32] |= uint32_t{1} << (core % 32);
  std::string text;
  for (size_t i = words.size(); i-- > 0;) {
    char word[12];
    std::snprintf(word, sizeof word, "%08x", words[i]);
    text += (text.empty() ? "" : ",") + std::string(word);
  }
  return text;
}

std::string write_core_list(const std::vector<int32_t>& cores) {
  std::string text;
  for (size_t i = 0; i < cores.size();) {
    size_t end = i + 1;
    while (end < cores.size() && cores[end] == cores[end - 1] + 1) ++end;
    text += (text.empty() ? "" : ",") + std::to_string(cores[i]);
    if (end - i > 1) text += "-" + std::to_string(cores[end - 1]);
    i = end;
  }
  return text;
}

std::optional<double> read_pci_speed(std::string_view text) {
  constexpr std::array kSpeeds = {0.0, 2.5, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0};
  text = trim(text);
  if (text.empty() || text.starts_with("Unknown")) return 0;
  const auto value = read_number(text.substr(0, text.find(' ')));
  if (!value || std::find(kSpeeds.begin(), kSpeeds.end(), *value) == kSpeeds.end()) {
    return std::nullopt;
  }
  return value;
}

bool is_pci_width(int64_t lanes) {
  constexpr std::array<int64_t, 8> kWidths = {0, 1, 2, 4, 8, 12, 16, 32};
  return std::find(kWidths.begin(), kWidths.end(), lanes) != kWidths.end();
}

bool is_port_speed(double bits_per_s) {
  constexpr std::array kGigabits = {0.01, 0.1,   1.0,   2.5,   5.0,   8.0,   10.0,  14.0,
                                    16.0, 20.0,  25.0,  28.0,  32.0,  40.0,  50.0,  54.0,
                                    56.0, 100.0, 112.0, 128.0, 200.0, 400.0, 800.0, 1600.0};
  return std::any_of(kGigabits.begin(), kGigabits.end(), [&](double speed) {
    return std::abs(bits_per_s - speed * 1e9) < 1e-3 * bits_per_s;
  });
}

bool is_virtual_nic(std::string_view name) {
  constexpr std::array<std::string_view, 19> kPrefixes = {
      "veth",    "cali",  "tunl",  "br-", "docker", "virbr", "vnet", "tap", "tun",      "cni",
      "flannel", "vxlan", "dummy", "lo",  "ifb",    "gre",   "sit",  "wg",  "kube-ipvs"};
  return std::any_of(kPrefixes.begin(), kPrefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

}  // namespace trireme

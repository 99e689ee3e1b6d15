// SPDX-License-Identifier: Apache-2.0
// What topology files and sysfs have in common: numbers, PCI ids, masks of cores, speeds as text.
// Nothing throws here: an empty optional or string says that the text is none, and the reader,
// which knows the place, objects.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "topology/machine.h"

namespace trireme {

// Limits of a machine that all readers keep to.
inline constexpr size_t kMaxGpus = 256;
inline constexpr size_t kMaxLinkEntries = 128;  // of a GPU
inline constexpr size_t kMaxPciDevices = 4096;
inline constexpr size_t kMaxNics = 256;
inline constexpr size_t kMaxNumaNodes = 1024;
inline constexpr int32_t kMaxCores = 65536;
inline constexpr int32_t kMaxGpuNvLinks = 36;      // NVML's limit; no GPU has more
inline constexpr size_t kMaxHosts = 65536;         // of a fabric
inline constexpr size_t kMaxHostsWithGpus = 1024;  // of one NCCL file

// The whole text is the number; "0x" makes it hexadecimal.
std::optional<int64_t> read_integer(std::string_view text);
// Finite.
std::optional<double> read_number(std::string_view text);
std::string_view trim(std::string_view text);
std::vector<std::string_view> split_fields(std::string_view text, char separator);

// "0000:3B:00.0", "00000000:3B:00.0" or "fffffff:ff:ff.0" -> lower case with a domain of at least
// four digits. Empty: it is none.
std::string read_pci_id(std::string_view text);

// Cores of "ffff0000,00000000" or "0x00000303,,0x0": 32 bits a word, the highest first.
std::optional<std::vector<int32_t>> read_core_mask(std::string_view text);
// Cores of "0-3,8".
std::optional<std::vector<int32_t>> read_core_list(std::string_view text);
std::string write_core_mask(const std::vector<int32_t>& cores);
std::string write_core_list(const std::vector<int32_t>& cores);

// Billions of transfers of "16 GT/s" or "32.0 GT/s PCIe"; 0 of "" and "Unknown". Empty: no PCIe
// link has that speed.
std::optional<double> read_pci_speed(std::string_view text);
bool is_pci_width(int64_t lanes);  // 0: not known

// Whether ports are made with this speed. What is not was set by hand, or is a sum.
bool is_port_speed(double bits_per_s);
// By its name: bridges, tunnels, ends of containers.
bool is_virtual_nic(std::string_view name);

}  // namespace trireme

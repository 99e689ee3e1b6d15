// SPDX-License-Identifier: Apache-2.0
// A machine as a probe or a file describes it: NUMA nodes, the PCI tree, GPUs, NICs. Every source
// fills what it knows; zero, empty or absent means not known. machine_topology.h makes a Topology
// of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trireme {

struct PciLink {
  double gigatransfers = 0;  // per second and lane: 2.5, 5, 8, 16, 32, 64
  int32_t width = 0;         // lanes
  double bytes_per_s = 0;    // where a source says only this; else pci_bytes_per_s() knows it
};

struct PciDevice {
  std::string id;             // "0000:3b:00.0", as read_pci_id() gives it
  uint32_t device_class = 0;  // 0x030200
  int32_t vendor = -1, device = -1;
  PciLink link;         // what the device and the port above it can both do
  PciLink now;          // an idle GPU lowers its speed, never its width
  int32_t parent = -1;  // the switch that it is behind, as an index that is lower; -1: a CPU
  std::string root;     // the host bridge: "pci0000:00"
  int32_t numa = -1;    // of its NUMA node, by the system's number
};

enum class LinkKind : uint8_t { kNvLink, kXgmi, kC2c };
enum class Remote : uint8_t { kUnknown, kGpu, kSwitch, kCpu };

// Links of one GPU to one other end.
struct GpuLinks {
  LinkKind kind = LinkKind::kNvLink;
  Remote remote = Remote::kUnknown;
  std::string target;      // PCI id of the other end; may be empty for kCpu
  int32_t count = 0;       // that are up
  double bytes_per_s = 0;  // payload of one link in one direction; 0: as its generation has it
};

// Where a GPU stands; every field may be absent.
struct Health {
  std::optional<double> temperature_c, slowdown_c;
  std::optional<double> power_w, power_limit_w;
  std::optional<double> sm_clock_mhz, max_sm_clock_mhz;
  std::optional<uint64_t> throttle_reasons;  // NVML's bits
  std::optional<uint64_t> ecc_uncorrected, ecc_corrected;
  bool row_remap_pending = false, row_remap_failed = false;
  std::vector<int32_t> xids;  // of the kernel log, oldest first
  std::string fabric_state;   // "completed", "in progress", …
  std::vector<std::string> fabric_faults;
};

struct Gpu {
  int32_t index = -1;  // the driver's number
  std::string pci_id;
  int32_t pci = -1;  // its index in Machine::pci: a hint, device_of() checks it
  std::string name, uuid;
  bool amd = false;
  int32_t compute_capability = 0;  // 90 for 9.0
  uint64_t memory_bytes = 0, free_bytes = 0;
  std::optional<bool> gdr;   // a NIC can read its memory
  bool links_known = false;  // a source listed its links, be it none
  std::vector<GpuLinks> links;
  int32_t links_down = 0;      // that are inactive or could not be asked
  int32_t links_expected = 0;  // NVLinks: set by complete_machine()
  std::string fabric_id;       // cluster and clique of a fabric that may span machines
  Health health;
  std::string degraded;            // why it is not what it should be; empty: it is
  std::vector<std::string> notes;  // what was marked, left out or could not be asked, and why
};

struct Nic {
  enum class State : uint8_t { kUnknown, kActive, kDown };
  std::string name;    // "mlx5_0", "eth0"
  int32_t pci = -1;    // as Gpu::pci
  std::string pci_id;  // empty: behind no device, or not known
  int32_t numa = -1;
  int32_t port = 0;
  double bits_per_s = 0;
  State state = State::kUnknown;
  std::string phys_state;  // "LinkUp"
  std::string link_layer;  // "InfiniBand", "Ethernet"
  std::string guid;
  std::string fabric_switch;  // that its cable goes to
  bool is_virtual = false;    // bridge, tunnel or container's end: no hardware of its own
  std::optional<bool> gdr;
  std::vector<std::string> notes;
};

struct NumaNode {
  int32_t id = -1;
  std::vector<int32_t> cores;
  uint64_t memory_bytes = 0;
  std::string cpu_vendor;  // "GenuineIntel"
  int32_t cpu_family = 0, cpu_model = 0;
  std::string architecture;  // "x86_64"
};

struct Machine {
  std::string host;
  std::string group;          // what it is near to in the network: a leaf switch, an NVLink domain
  std::string nvlink_domain;  // of several machines
  std::string source;         // the file, or "this machine"
  std::vector<NumaNode> numa;
  std::vector<PciDevice> pci;
  std::vector<Gpu> gpus;
  std::vector<Nic> nics;
  std::vector<std::string> missing;  // what could not be found, and why
  std::vector<std::string> notes;    // contradictions that were marked

  int32_t find_pci(const std::string& id) const;  // -1: not there
  int32_t find_gpu(const std::string& pci_id) const;

  // The index of the PCI device of a GPU or NIC; -1: not known.
  template <class Device>
  int32_t index_of(const Device& device) const {
    const bool right = device.pci >= 0 && static_cast<size_t>(device.pci) < pci.size() &&
                       pci[static_cast<size_t>(device.pci)].id == device.pci_id;
    if (right) return device.pci;
    return device.pci_id.empty() ? -1 : find_pci(device.pci_id);
  }
  // Sets the hints, so that index_of() need not search.
  void index_devices();
};

double pci_bytes_per_s(const PciLink& link);  // 0: not known

// A table of GPUs that machines have: what PCI ids and compute capabilities stand for.
struct GpuModel {
  int32_t device;  // PCI device id
  const char* name;
  int32_t compute_capability;
  int32_t nvlinks;  // that the board has
  bool wired;       // they are: on a card that is not, bridges are an option
};
const GpuModel* find_gpu_model(int32_t pci_device);  // nullptr: not in the table

// The most NVLinks that this GPU can have; -1: not known.
int32_t max_nvlinks(const Machine& machine, const Gpu& gpu);
// The payload of one of its NVLinks in one direction, nominal; 0: not known.
double nvlink_bytes_per_s(const Gpu& gpu);

// Makes a tree of all bridges one of switches, with the GPUs, NICs and NVSwitches behind them: what
// else there is goes. A switch is two levels of bridges, the port up and the ports down; files and
// nvidia-smi count switches.
void keep_switches(Machine& machine);

// Merges, marks and completes what a source found: links to oneself, one-sided links, more links
// than the chip has, GPUs and devices far under their siblings, NICs that several CPUs claim. Every
// mark is a note. Called by each reader at its end.
void complete_machine(Machine& machine);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// sysfs as the test lays it out: two sockets, a PCIe switch with a GPU and an InfiniBand card.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "topology/machine_paths.h"
#include "topology/machine_topology.h"
#include "topology/probe_machine.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

class ProbeSysfs : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("sysfs-" + std::to_string(getpid()));
    fs::remove_all(root_);
    put("proc/cpuinfo",
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n\n");
    put("proc/sys/kernel/osrelease", "6.1.0\n");
    for (const int node : {0, 1}) {
      const std::string folder = "sys/devices/system/node/node" + std::to_string(node);
      put(folder + "/cpulist", node == 0 ? "0-3\n" : "4-7\n");
      put(folder + "/meminfo", "Node 0 MemTotal:       8388608 kB\n");
    }
    // A root port, a switch (port up, two ports down), a GPU and a NIC below; a GPU on the other
    // CPU.
    const std::string up = "pci0000:00/0000:00:01.0/0000:01:00.0";
    pci("pci0000:00/0000:00:01.0", "0x060400", "0x8086", "0x0001", 0, "32.0 GT/s PCIe", "16");
    pci(up, "0x060400", "0x1000", "0xc030", 0, "32.0 GT/s PCIe", "16");
    pci(up + "/0000:02:00.0", "0x060400", "0x1000", "0xc030", 0, "32.0 GT/s PCIe", "16");
    pci(up + "/0000:02:01.0", "0x060400", "0x1000", "0xc030", 0, "32.0 GT/s PCIe", "16");
    pci(up + "/0000:02:00.0/0000:03:00.0", "0x030200", "0x10de", "0x2330", 0, "32.0 GT/s PCIe",
        "16");
    pci(up + "/0000:02:01.0/0000:04:00.0", "0x020700", "0x15b3", "0x1021", 0, "32.0 GT/s PCIe",
        "16");
    pci("pci0000:80/0000:80:01.0", "0x060400", "0x8086", "0x0001", 1, "32.0 GT/s PCIe", "16");
    pci("pci0000:80/0000:80:01.0/0000:81:00.0", "0x030200", "0x10de", "0x2330", 1, "32.0 GT/s PCIe",
        "16");
    port("mlx5_0", "/0000:04:00.0", up + "/0000:02:01.0", "400 Gb/sec (4X NDR)", "4: ACTIVE",
         "5: LinkUp");
  }
  void TearDown() override { fs::remove_all(root_); }

  void put(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  void pci(const std::string& path, const std::string& device_class, const std::string& vendor,
           const std::string& device, int numa, const std::string& speed,
           const std::string& width) {
    const std::string folder = "sys/devices/" + path;
    put(folder + "/class", device_class + "\n");
    put(folder + "/vendor", vendor + "\n");
    put(folder + "/device", device + "\n");
    put(folder + "/numa_node", std::to_string(numa) + "\n");
    for (const char* which : {"/current_link_", "/max_link_"}) {
      put(folder + which + "speed", speed + "\n");
      put(folder + which + "width", width + "\n");
    }
    fs::create_directories(root_ / "sys/bus/pci/devices");
    fs::create_symlink(root_ / folder, root_ / "sys/bus/pci/devices" / fs::path(path).filename());
  }

  void port(const std::string& name, const std::string& pci_tail, const std::string& above,
            const std::string& rate, const std::string& state, const std::string& phys_state) {
    const std::string folder = "sys/class/infiniband/" + name;
    put(folder + "/node_guid", "a088:c203:00ab:0001\n");
    put(folder + "/ports/1/rate", rate + "\n");
    put(folder + "/ports/1/state", state + "\n");
    put(folder + "/ports/1/phys_state", phys_state + "\n");
    put(folder + "/ports/1/link_layer", "InfiniBand\n");
    fs::create_symlink(root_ / ("sys/devices/" + above + pci_tail), root_ / folder / "device");
  }

  Machine probe() const {
    return probe_machine({root_, "libnvidia-ml-absent.so", "/does/not/exist"});
  }

  static bool said(const std::vector<std::string>& notes, const std::string& part) {
    for (const std::string& note : notes) {
      if (note.find(part) != std::string::npos) return true;
    }
    return false;
  }

  fs::path root_;
};

TEST_F(ProbeSysfs, TreePortsAndNodes) {
  const Machine machine = probe();
  ASSERT_EQ(machine.numa.size(), 2u);
  EXPECT_EQ(machine.numa[1].cores, (std::vector<int32_t>{4, 5, 6, 7}));
  EXPECT_EQ(machine.numa[0].memory_bytes, uint64_t{8} << 30);
  EXPECT_EQ(machine.numa[0].cpu_model, 143);
  ASSERT_EQ(machine.gpus.size(), 2u);
  EXPECT_EQ(machine.gpus[0].name, "NVIDIA H100 80GB HBM3") << "by its PCI id";
  ASSERT_EQ(machine.nics.size(), 1u);
  const Nic& nic = machine.nics[0];
  EXPECT_EQ(nic.bits_per_s, 400e9);
  EXPECT_EQ(nic.state, Nic::State::kActive);
  EXPECT_EQ(nic.phys_state, "LinkUp");
  EXPECT_EQ(nic.link_layer, "InfiniBand");
  EXPECT_EQ(path_name(nic_path(machine, 0, nic)), "PIX");
  EXPECT_EQ(path_name(nic_path(machine, 1, nic)), "SYS");
  EXPECT_EQ(path_name(gpu_path(machine, 0, 1)), "SYS");
  EXPECT_EQ(machine.pci.size(), 4u) << "root ports and ports down are no switches";
}

TEST_F(ProbeSysfs, WhatIsMissingIsSaid) {
  const Machine machine = probe();
  EXPECT_TRUE(said(machine.missing, "NVML: "));
  EXPECT_TRUE(said(machine.missing, "GPUDirect RDMA: neither the module nvidia_peermem"));
  EXPECT_TRUE(said(machine.missing, "XIDs of the past: /does/not/exist: No such file"));
  ASSERT_TRUE(machine.gpus[0].gdr.has_value());
  EXPECT_FALSE(*machine.gpus[0].gdr);
}

TEST_F(ProbeSysfs, GpuDirectRdma) {
  put("proc/driver/nvidia/version",
      "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65\n");
  EXPECT_TRUE(*probe().gpus[0].gdr) << "dma-buf of the open driver";
  put("proc/sys/kernel/osrelease", "5.4.0\n");
  EXPECT_FALSE(*probe().gpus[0].gdr) << "that kernel has no dma-buf";
  fs::create_directories(root_ / "sys/module/nvidia_peermem");
  EXPECT_TRUE(*probe().gpus[0].gdr);
  EXPECT_TRUE(*probe().nics[0].gdr);
}

TEST_F(ProbeSysfs, HalfOfItsLanes) {
  put("sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0/current_link_width", "8\n");
  EXPECT_EQ(probe().gpus[1].degraded, "PCIe runs with 8 lanes of 16");
  // A slot of eight lanes is what it is, and still far under the sibling's.
  put("sys/devices/pci0000:80/0000:80:01.0/max_link_width", "8\n");
  EXPECT_EQ(probe().gpus[1].degraded, "PCIe has 31.5 GB/s, its siblings' 63");
  // An idle GPU lowers its speed: no fault.
  put("sys/devices/pci0000:80/0000:80:01.0/max_link_width", "16\n");
  put("sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0/current_link_width", "16\n");
  put("sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0/current_link_speed", "2.5 GT/s PCIe\n");
  EXPECT_EQ(probe().gpus[1].degraded, "");
}

TEST_F(ProbeSysfs, PortsThatAreDownOrNarrow) {
  put("sys/class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (1X NDR)\n");
  put("sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", "7\n");
  Machine machine = probe();
  EXPECT_TRUE(said(machine.nics[0].notes, "runs with fewer lanes than four"));
  EXPECT_TRUE(said(machine.nics[0].notes, "7 link_downed"));
  put("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN\n");
  put("sys/class/infiniband/mlx5_0/ports/1/phys_state", "3: Disabled\n");
  machine = probe();
  EXPECT_EQ(machine.nics[0].state, Nic::State::kDown);
  EXPECT_TRUE(said(machine.nics[0].notes, "down: state 1: DOWN, phys_state 3: Disabled"));
  EXPECT_TRUE(nearest_nics(machine, 0).empty());
}

// A second card of the kind, in a slot of two lanes of PCIe 1, that came up at a quarter of its
// rate.
TEST_F(ProbeSysfs, NicsUnderTheirSiblings) {
  pci("pci0000:80/0000:80:02.0", "0x020700", "0x15b3", "0x1021", 1, "2.5 GT/s PCIe", "2");
  port("mlx5_1", "", "pci0000:80/0000:80:02.0", "100 Gb/sec (4X EDR)", "4: ACTIVE", "5: LinkUp");
  const Machine machine = probe();
  ASSERT_EQ(machine.nics.size(), 2u);
  EXPECT_TRUE(machine.nics[0].notes.empty());
  EXPECT_TRUE(said(machine.nics[1].notes, "runs at 100 Gb/s, its siblings at 400"));
  EXPECT_TRUE(said(machine.nics[1].notes, "its PCIe link carries 3.4 Gb/s of 100"));
}

TEST_F(ProbeSysfs, EthernetAndVirtualNics) {
  put("sys/class/net/lo/type", "772\n");
  put("sys/class/net/veth1/type", "1\n");
  put("sys/class/net/veth1/speed", "10000\n");
  put("sys/class/net/eth0/type", "1\n");
  put("sys/class/net/eth0/speed", "-1\n");
  put("sys/class/net/eth0/operstate", "down\n");
  put("sys/class/net/ib0/type", "32\n");
  fs::create_symlink(root_ / "sys/devices/pci0000:80/0000:80:01.0",
                     root_ / "sys/class/net/eth0/device");
  const Machine machine = probe();
  ASSERT_EQ(machine.nics.size(), 3u);
  EXPECT_EQ(machine.nics[1].name, "eth0");
  EXPECT_EQ(machine.nics[1].numa, 1);
  EXPECT_EQ(machine.nics[1].bits_per_s, 0);
  EXPECT_EQ(machine.nics[1].state, Nic::State::kDown);
  EXPECT_TRUE(machine.nics[2].is_virtual);
  const Topology topology = topology_of({machine});
  EXPECT_EQ(topology.nodes(0).nics_size(), 2) << "virtual ones are left out, and said";
  EXPECT_EQ(topology.ranks(0).device().numa_node(), 0);
}

// What cannot be looked at is lost alone.
TEST_F(ProbeSysfs, LinksThatLeadNowhere) {
  put("sys/class/net/eth0/type", "1\n");
  for (const char* link :
       {"sys/class/net/eth0/device", "sys/class/net/eth0/bonding", "sys/module/nvidia_peermem",
        "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/"
        "0000:04:00.0/physfn"}) {
    fs::create_directories((root_ / link).parent_path());
    fs::create_symlink(root_ / link, root_ / link);  // to itself
  }
  const Machine machine = probe();
  ASSERT_EQ(machine.nics.size(), 2u);
  EXPECT_TRUE(machine.nics[1].is_virtual);
  EXPECT_EQ(machine.gpus.size(), 2u);
}

// Whatever stands in the files.
TEST_F(ProbeSysfs, Nonsense) {
  for (const char* text : {"", "\xFF\xFE", "-99999999999999999999", "nan", "0x7fffffffffffffff"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root_)) {
      if (entry.is_regular_file()) std::ofstream(entry.path()) << text;
    }
    EXPECT_NO_THROW(topology_of({probe()})) << text;
  }
}

TEST(ProbeMachine, ThisOne) {
  const Machine machine = probe_machine({});
  EXPECT_FALSE(machine.host.empty());
  EXPECT_FALSE(machine.numa.empty() && machine.missing.empty());
  EXPECT_NO_THROW(topology_of({machine}));
}

}  // namespace
}  // namespace trireme

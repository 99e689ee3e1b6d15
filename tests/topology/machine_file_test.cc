// SPDX-License-Identifier: Apache-2.0
// Topology files: those of real and operators' machines in ../shared, a few small ones of ours.
#include "topology/machine_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "kernels/base/error.h"
#include "topology/machine_paths.h"
#include "topology/machine_text.h"
#include "topology/nccl_xml.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

const fs::path kShared = TRIREME_SOURCE_DIR "/../shared/data/topologies";
const fs::path kOurs = TRIREME_SOURCE_DIR "/tests/data/topologies";

std::vector<Machine> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return read_machines(text, path.filename(), path.stem());
}

std::string class_name(const Machine& machine, size_t a, size_t b) {
  return path_name(gpu_path(machine, a, b));
}

// "NV18": how many ordered pairs.
std::map<std::string, int> pair_classes(const Machine& machine) {
  std::map<std::string, int> classes;
  for (size_t a = 0; a < machine.gpus.size(); ++a) {
    for (size_t b = 0; b < machine.gpus.size(); ++b) {
      if (a != b) ++classes[class_name(machine, a, b)];
    }
  }
  return classes;
}

using Classes = std::map<std::string, int>;

// ---- the files of others ----

struct Expected {
  const char* path;
  size_t machines, gpus, nics;  // of the first machine
  Classes classes;
};

class SharedFile : public testing::TestWithParam<Expected> {};

TEST_P(SharedFile, Parses) {
  const fs::path path = kShared / GetParam().path;
  if (!fs::exists(path)) GTEST_SKIP() << "../shared is absent: " << GetParam().path;
  const std::vector<Machine> machines = read_file(path);
  ASSERT_EQ(machines.size(), GetParam().machines);
  EXPECT_EQ(machines[0].gpus.size(), GetParam().gpus);
  EXPECT_EQ(machines[0].nics.size(), GetParam().nics);
  EXPECT_EQ(pair_classes(machines[0]), GetParam().classes);
}

INSTANTIATE_TEST_SUITE_P(
    Topologies, SharedFile,
    testing::Values(
        Expected{"aws/p4d-24xl-topo.xml", 1, 8, 4, {{"PIX", 8}, {"PHB", 16}, {"SYS", 32}}},
        Expected{"azure/ncv4-topo.xml", 1, 4, 1, {{"SYS", 12}}},
        Expected{"azure/ndv4-topo.xml", 1, 8, 8, {{"PIX", 8}, {"SYS", 48}}},
        Expected{"azure/ndv5-topo.xml", 1, 8, 8, {{"PHB", 24}, {"SYS", 32}}},
        Expected{"captured/hgx-h200-8x-nccl_topo.xml", 1, 8, 1, {{"NV18", 56}}},
        Expected{"captured/perlmutter-4xa100-slingshot-nccl_topo.xml", 1, 4, 4, {{"NV4", 12}}},
        Expected{"community-bsd/8x3090-pciswitch-fdr56.xml", 1, 8, 1, {{"PIX", 24}, {"SYS", 32}}},
        Expected{"community-bsd/4x4090-threadripper-1gbe-veth.xml", 1, 4, 16, {{"SYS", 12}}},
        Expected{"oracle/H100-topology.xml", 1, 8, 16, {{"NV18", 56}}},
        Expected{"oracle/topo-flattened.xml", 1, 8, 8, {{"PIX", 8}, {"SYS", 48}}},
        Expected{"rccl/topo_4p3l_n4.xml", 1, 8, 1, {{"XG1", 24}, {"PHB", 4}, {"SYS", 28}}},
        Expected{"rccl/topo_8p_pcie.xml", 1, 8, 1, {{"PXB", 24}, {"PHB", 32}}},
        Expected{"hwloc/nvidiaDGX2.xml", 1, 16, 0, {{"NV6", 240}}},
        Expected{"hwloc/power8gpudistances.xml", 1, 4, 0, {{"NV2", 4}, {"SYS", 8}}},
        Expected{"topograph/ibnetdiscover-ndr-dgx.out", 122, 0, 4, {}},
        Expected{"topograph/medium.yaml", 8, 0, 0, {}},
        Expected{"topograph/nvl72.yaml", 72, 0, 0, {}},
        Expected{"nvml-mock/a100.yaml", 1, 8, 8, {{"NV12", 56}}},
        Expected{"nvml-mock/h100.yaml", 1, 8, 8, {{"NV18", 56}}},
        Expected{"nvml-mock/b200.yaml", 1, 8, 8, {{"PHB", 24}, {"SYS", 32}}},
        Expected{"nvml-mock/gb200.yaml", 1, 8, 8, {{"NV18", 56}}},
        Expected{"nvml-mock/t4.yaml", 1, 4, 0, {{"PHB", 12}}},
        Expected{"nvml-mock/l40s.yaml", 1, 8, 0, {{"PHB", 24}, {"SYS", 32}}},
        Expected{"go-gpuallocator/dgx1-volta-pascal-links.go.txt",
                 3,
                 4,
                 0,
                 {{"NV2", 4}, {"NODE", 4}, {"SYS", 4}}}),
    [](const auto& test) {
      std::string name = test.param.path;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
      return name;
    });

// The list above has every file that is there.
TEST(SharedFiles, AreAllRead) {
  if (!fs::exists(kShared)) GTEST_SKIP() << "../shared is absent";
  for (const auto& entry : fs::recursive_directory_iterator(kShared)) {
    const std::string name = entry.path().filename();
    if (!entry.is_regular_file() || name.starts_with("LICENSE") || name == "COPYING") continue;
    EXPECT_NO_THROW(read_file(entry.path())) << entry.path();
  }
}

std::vector<std::string> nearest(const Machine& machine, size_t gpu) {
  std::vector<std::string> names;
  for (const size_t nic : nearest_nics(machine, gpu)) names.push_back(machine.nics[nic].name);
  return names;
}

using Names = std::vector<std::string>;

// Perlmutter's NICs run against its GPUs.
TEST(SharedFiles, NicsNextToGpus) {
  if (!fs::exists(kShared)) GTEST_SKIP() << "../shared is absent";
  const Machine perlmutter =
      read_file(kShared / "captured/perlmutter-4xa100-slingshot-nccl_topo.xml")[0];
  for (const Gpu& gpu : perlmutter.gpus) {
    const auto index = static_cast<size_t>(perlmutter.find_gpu(gpu.pci_id));
    EXPECT_EQ(nearest(perlmutter, index), Names{"cxi" + std::to_string(3 - gpu.index)});
  }
  const Machine oracle = read_file(kShared / "oracle/H100-topology.xml")[0];
  EXPECT_EQ(nearest(oracle, 0), (Names{"mlx5_0", "mlx5_1"}));
  EXPECT_EQ(path_name(nic_path(oracle, 0, oracle.nics[0])), "PXB");
  EXPECT_EQ(oracle.nics[0].notes.size(), 1u) << "180 Gb/s is nobody's port";
  const Machine threadripper =
      read_file(kShared / "community-bsd/4x4090-threadripper-1gbe-veth.xml")[0];
  EXPECT_EQ(nearest(threadripper, 1), Names{"enp34s0f0"});
  size_t virtual_nics = 0;
  for (const Nic& nic : threadripper.nics) virtual_nics += nic.is_virtual ? 1 : 0;
  EXPECT_EQ(virtual_nics, 15u);
}

TEST(SharedFiles, ImpossibleLinksAreMarked) {
  if (!fs::exists(kShared)) GTEST_SKIP() << "../shared is absent";
  const Machine azure = read_file(kShared / "azure/ncv4-topo.xml")[0];
  for (const Gpu& gpu : azure.gpus) {
    EXPECT_TRUE(gpu.links.empty());
    ASSERT_EQ(gpu.notes.size(), 1u);
    EXPECT_NE(gpu.notes[0].find("lead to the GPU itself"), std::string::npos) << gpu.notes[0];
  }
}

TEST(SharedFiles, FabricOfHosts) {
  if (!fs::exists(kShared)) GTEST_SKIP() << "../shared is absent";
  const auto fabric = read_file(kShared / "topograph/ibnetdiscover-ndr-dgx.out");
  std::map<std::string, int> groups;
  for (const Machine& machine : fabric) ++groups[machine.group];
  EXPECT_EQ(fabric[0].notes.size(), 1u);
  EXPECT_GT(groups.size(), 1u);
  EXPECT_LT(groups.size(), 12u);
  EXPECT_EQ(fabric[0].nics[0].bits_per_s, 400e9);
  const auto nvl72 = read_file(kShared / "topograph/nvl72.yaml");
  EXPECT_EQ(nvl72[0].host, "node1101");
  EXPECT_EQ(nvl72[0].group, "leaf-1-1");
  EXPECT_EQ(nvl72[71].nvlink_domain, "nvl-2-2");
}

TEST(SharedFiles, CubeMeshOfDgx1) {
  if (!fs::exists(kShared)) GTEST_SKIP() << "../shared is absent";
  const auto nodes = read_file(kShared / "go-gpuallocator/dgx1-volta-pascal-links.go.txt");
  ASSERT_EQ(nodes.size(), 3u);
  EXPECT_EQ(nodes[1].host, "DGX1Pascal");
  EXPECT_EQ(pair_classes(nodes[1]), (Classes{{"NV1", 32}, {"SYS", 24}}));
  EXPECT_EQ(pair_classes(nodes[2]), (Classes{{"NV1", 16}, {"NV2", 16}, {"SYS", 24}}));
}

// ---- ours ----

TEST(MachineFile, LostLinksAndLanes) {
  const Machine machine = read_file(kOurs / "hgx-4gpu-one-lost.xml")[0];
  EXPECT_EQ(pair_classes(machine), (Classes{{"NV18", 6}, {"SYS", 4}, {"PIX", 2}}));
  EXPECT_EQ(machine.gpus[2].degraded, "none of its 18 NVLinks is up");
  EXPECT_EQ(machine.gpus[3].degraded, "PCIe has 31.5 GB/s, its siblings' 63");
  EXPECT_TRUE(machine.gpus[0].degraded.empty()) << machine.gpus[0].degraded;
  EXPECT_EQ(nearest(machine, 0), Names{"mlx5_0"});
}

TEST(MachineFile, Hwloc) {
  const Machine machine = read_file(kOurs / "two-sockets-hwloc.xml")[0];
  EXPECT_EQ(machine.host, "made-up");
  EXPECT_EQ(pair_classes(machine), (Classes{{"NV2", 2}}));
  EXPECT_EQ(path_name(nic_path(machine, 0, machine.nics[0])), "PIX");
  EXPECT_EQ(path_name(nic_path(machine, 1, machine.nics[0])), "SYS");
  EXPECT_EQ(machine.numa[1].cores, (std::vector<int32_t>{2, 3}));
  // The root port and the ports down are no switches.
  EXPECT_EQ(machine.pci.size(), 4u);
}

TEST(MachineFile, Fabrics) {
  const auto hosts = read_file(kOurs / "two-leaves-ibnetdiscover.txt");
  ASSERT_EQ(hosts.size(), 3u);
  EXPECT_EQ(hosts[0].group, "leaf-a");
  EXPECT_EQ(hosts[1].group, "leaf-a");
  EXPECT_EQ(hosts[2].group, "leaf-b");
  EXPECT_EQ(hosts[2].nics[0].bits_per_s, 100e9);
  ASSERT_EQ(hosts[0].notes.size(), 1u);
  EXPECT_NE(hosts[0].notes[0].find("1 of 4 adapters"), std::string::npos);
  const auto nodes = read_file(kOurs / "two-domains-topograph.yaml");
  ASSERT_EQ(nodes.size(), 21u);
  EXPECT_EQ(nodes[0].host, "gpu001");
  EXPECT_EQ(nodes[20].host, "gpu022");
  EXPECT_EQ(nodes[20].nvlink_domain, "nvl-2");
}

// What is written for NCCL is read again as it was.
TEST(MachineFile, NcclXmlBackAndForth) {
  std::vector<fs::path> paths = {kOurs / "hgx-4gpu-one-lost.xml", kOurs / "two-sockets-hwloc.xml"};
  for (const char* name :
       {"captured/hgx-h200-8x-nccl_topo.xml", "oracle/H100-topology.xml", "rccl/topo_4p3l_n4.xml",
        "captured/perlmutter-4xa100-slingshot-nccl_topo.xml", "hwloc/nvidiaDGX2.xml"}) {
    if (fs::exists(kShared / name)) paths.push_back(kShared / name);
  }
  for (const fs::path& path : paths) {
    SCOPED_TRACE(path.string());
    const Machine machine = read_file(path)[0];
    const auto again = read_machines(write_nccl_xml(machine), "written", machine.host);
    ASSERT_EQ(again.size(), 1u);
    EXPECT_EQ(pair_classes(again[0]), pair_classes(machine));
    EXPECT_EQ(again[0].pci.size(), machine.pci.size());
    ASSERT_EQ(again[0].nics.size(), machine.nics.size());
    for (size_t gpu = 0; gpu < machine.gpus.size(); ++gpu) {
      EXPECT_EQ(nearest(again[0], gpu), nearest(machine, gpu));
    }
    EXPECT_EQ(write_nccl_xml(again[0]), write_nccl_xml(machine));
  }
}

TEST(MachineText, PciIdsMasksAndSpeeds) {
  EXPECT_EQ(read_pci_id("00000000:3B:00.0"), "0000:3b:00.0");
  EXPECT_EQ(read_pci_id("0:3b:00.0"), "0000:3b:00.0");
  EXPECT_EQ(read_pci_id("fffffff:ff:ff.0"), "fffffff:ff:ff.0");
  for (const char* bad :
       {"", "3b:00.0", ":3b:00.0", "0000:3b:00", "0000:3b:00.0 ", "000000000:3b:00.0"}) {
    EXPECT_EQ(read_pci_id(bad), "") << bad;
  }
  EXPECT_EQ(read_core_mask("0x00000303,,0x1"), (std::vector<int32_t>{0, 64, 65, 72, 73}));
  EXPECT_EQ(write_core_mask({0, 64, 65, 72, 73}), "00000303,00000000,00000001");
  EXPECT_FALSE(read_core_mask("0xf...f").has_value());
  EXPECT_EQ(read_core_list("0-2,5\n"), (std::vector<int32_t>{0, 1, 2, 5}));
  EXPECT_FALSE(read_core_list("3-1").has_value());
  EXPECT_FALSE(read_core_list("0-99999999").has_value());
  EXPECT_EQ(read_pci_speed("32.0 GT/s PCIe"), 32.0);
  EXPECT_EQ(read_pci_speed(""), 0.0);
  EXPECT_FALSE(read_pci_speed("23 GT/s").has_value());
  EXPECT_NEAR(pci_bytes_per_s({16, 16, 0}), 31.5e9, 0.1e9);
}

}  // namespace
}  // namespace trireme

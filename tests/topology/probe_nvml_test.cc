// SPDX-License-Identifier: Apache-2.0
// NVML without a GPU: tests/topology/fake_nvml serves profiles, with faults.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "topology/gpu_users.h"
#include "topology/machine_paths.h"
#include "topology/machine_topology.h"
#include "topology/probe_machine.h"

namespace trireme {
namespace {

const std::string kLibrary = TRIREME_BUILD_DIR "/libfake_nvml.so";
const std::string kOurs = TRIREME_SOURCE_DIR "/tests/data/topologies/four-gpus-profile.yaml";
const std::string kShared = TRIREME_SOURCE_DIR "/../shared/data/topologies/nvml-mock/";

// What the probe finds without any sysfs.
Machine probe(const std::string& profile, const std::string& faults = "",
              const std::string& kernel_log = "/dev/null") {
  setenv("TRIREME_FAKE_NVML_PROFILE", profile.c_str(), 1);
  setenv("TRIREME_FAKE_NVML_FAULTS", faults.c_str(), 1);
  return probe_machine({"/does/not/exist", kLibrary, kernel_log});
}

bool mentions(const std::vector<std::string>& notes, const std::string& part) {
  for (const std::string& note : notes) {
    if (note.find(part) != std::string::npos) return true;
  }
  return false;
}

std::string all(const std::vector<std::string>& notes) {
  std::string text;
  for (const std::string& note : notes) text += note + "\n";
  return text;
}

TEST(ProbeNvml, AllIsWell) {
  const Machine machine = probe(kOurs);
  ASSERT_EQ(machine.gpus.size(), 4u);
  const Gpu& gpu = machine.gpus[2];
  EXPECT_EQ(gpu.pci_id, "0000:8a:00.0");
  EXPECT_EQ(gpu.name, "NVIDIA H100 80GB HBM3");
  EXPECT_EQ(gpu.uuid, "GPU-2");
  EXPECT_EQ(gpu.memory_bytes, 85899345920u);
  EXPECT_EQ(gpu.compute_capability, 90);
  EXPECT_EQ(gpu.health.temperature_c, 34);
  EXPECT_EQ(gpu.health.power_w, 95);
  EXPECT_EQ(gpu.health.fabric_state, "completed");
  EXPECT_EQ(gpu.fabric_id, "00000000000000000000000000000001:0");
  EXPECT_EQ(gpu.links.size(), 2u) << "two switches";
  EXPECT_EQ(path_name(gpu_path(machine, 0, 3)), "NV18");
  EXPECT_EQ(gpu_path(machine, 0, 3).bytes_per_s, 18 * 25e9) << "payload, not the signalling rate";
  EXPECT_TRUE(gpu.degraded.empty()) << gpu.degraded;
  EXPECT_TRUE(gpu.notes.empty()) << all(gpu.notes);
  // An idle GPU's low clocks are its own choice.
  EXPECT_TRUE(device_info(machine, 2).notes().empty());
}

TEST(ProbeNvml, WithoutTheLibrary) {
  const Machine machine =
      probe_machine({"/does/not/exist", "libnvidia-ml-absent.so.1", "/dev/null"});
  EXPECT_TRUE(machine.gpus.empty());
  EXPECT_TRUE(mentions(machine.missing, "NVML: libnvidia-ml-absent.so.1: cannot open"))
      << all(machine.missing);
  EXPECT_TRUE(mentions(machine.missing, "NUMA nodes")) << all(machine.missing);
}

TEST(ProbeNvml, WithoutTheDriver) {
  const Machine machine = probe("/does/not/exist.yaml");
  EXPECT_TRUE(mentions(machine.missing, "NVML: Driver Not Loaded")) << all(machine.missing);
}

TEST(ProbeNvml, AHotCard) {
  const Machine machine = probe(kOurs, "hot:1");
  EXPECT_EQ(machine.gpus[1].degraded, "hot: 91 C, clocks 40 % down");
  EXPECT_TRUE(machine.gpus[0].degraded.empty());
  const DeviceInfo device = device_info(machine, 1);
  EXPECT_TRUE(device.degraded());
  ASSERT_EQ(device.notes_size(), 1);
  EXPECT_EQ(device.notes(0), "hot: 91 C, clocks 40 % down");
  EXPECT_EQ(device.health().throttle_reasons(1), "hardware thermal slowdown");
}

TEST(ProbeNvml, ALostLink) {
  const Machine machine = probe(kOurs, "lost_link:3:5");
  EXPECT_EQ(machine.gpus[3].degraded, "17 of 18 NVLinks are up");
  EXPECT_EQ(path_name(gpu_path(machine, 0, 3)), "NV17");
  EXPECT_EQ(path_name(gpu_path(machine, 0, 1)), "NV18");
  const Topology topology = topology_of({machine});
  ASSERT_EQ(topology.islands_size(), 1);
  EXPECT_EQ(topology.islands(0).ranks_size(), 4);
}

// The GPU is out of its island, and named.
TEST(ProbeNvml, AllLinksLost) {
  const Machine machine = probe(kOurs, "lost_links:2");
  EXPECT_EQ(machine.gpus[2].degraded, "none of its 18 NVLinks is up");
  const Topology topology = topology_of({machine});
  ASSERT_EQ(topology.islands_size(), 1);
  EXPECT_EQ(topology.islands(0).ranks_size(), 3);
  for (const int32_t rank : topology.islands(0).ranks()) EXPECT_NE(rank, 3);
  EXPECT_TRUE(topology.ranks(2).device().degraded());
  EXPECT_EQ(topology.ranks(2).device().degraded_reason(), machine.gpus[2].degraded);
  EXPECT_EQ(topology.ranks(2).device().nvlinks_expected(), 18);
}

TEST(ProbeNvml, ASlowLink) {
  const Machine machine = probe(kOurs, "slow_link:0:4");
  EXPECT_TRUE(mentions(machine.gpus[0].notes, "NVLink 4 runs at 12 GB/s of 25"))
      << all(machine.gpus[0].notes);
}

TEST(ProbeNvml, FabricFaults) {
  const Machine machine = probe(kOurs, "fabric:0,starting:1");
  EXPECT_EQ(machine.gpus[0].degraded, "fabric: insufficient NVLinks");
  EXPECT_EQ(path_name(gpu_path(machine, 0, 2)), "NV18");
  EXPECT_EQ(gpu_path(machine, 1, 2).links, 0) << "not registered: nobody reaches it by NVLink";
  EXPECT_TRUE(mentions({device_info(machine, 1).notes(0)}, "fabric is in progress"));
}

TEST(ProbeNvml, ErrorsInMemoryAndKernelLog) {
  const std::string log = testing::TempDir() + "/kernel-log";
  FILE* const file = std::fopen(log.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fputs(
      "6,1,2,-;NVRM: Xid (PCI:0000:1a:00): 79, pid=1, GPU has fallen off the bus.\n"
      "6,2,3,-;NVRM: Xid (PCI:0000:1b:00): 13, Graphics Exception\n"
      "6,2,3,-;NVRM: Xid (PCI:0000:ff:00): 48, unknown card\nNVRM: Xid (PCI:\n",
      file);
  std::fclose(file);
  const Machine machine = probe(kOurs, "ecc:2", log);
  EXPECT_EQ(machine.gpus[0].degraded, "XID 79 in the kernel's log");
  EXPECT_TRUE(machine.gpus[1].degraded.empty());
  EXPECT_EQ(device_info(machine, 1).notes(0), "the kernel's log has XID 13");
  EXPECT_EQ(device_info(machine, 2).notes(0),
            "3 uncorrected memory errors since the driver started");
}

TEST(ProbeNvml, RefusedPeers) {
  EXPECT_TRUE(mentions(probe(kOurs, "no_peers").notes, "refuses peer access for 12 of 12"));
}

// Whichever query fails, its field alone is lost, and it is said.
TEST(ProbeNvml, EveryQueryMayFail) {
  struct Case {
    const char* function;
    const char* said;
  };
  const Case kCases[] = {
      {"nvmlDeviceGetName", "its name"},
      {"nvmlDeviceGetUUID", "its UUID"},
      {"nvmlDeviceGetMemoryInfo", "its memory"},
      {"nvmlDeviceGetCudaComputeCapability", "its compute capability"},
      {"nvmlDeviceGetTemperature", "its temperature"},
      {"nvmlDeviceGetTemperatureThreshold", "its slowdown temperature"},
      {"nvmlDeviceGetPowerUsage", "its power"},
      {"nvmlDeviceGetEnforcedPowerLimit", "its power limit"},
      {"nvmlDeviceGetClockInfo", "its clock"},
      {"nvmlDeviceGetMaxClockInfo", "its highest clock"},
      {"nvmlDeviceGetCurrentClocksThrottleReasons", "its throttle reasons"},
      {"nvmlDeviceGetTotalEccErrors", "its uncorrected memory errors"},
      {"nvmlDeviceGetRemappedRows", "its remapped rows"},
      {"nvmlDeviceGetGpuFabricInfoV", "its fabric"},
      {"nvmlDeviceGetNvLinkRemotePciInfo_v2", "where NVLink 0, 1, 2"},
      {"nvmlDeviceGetNvLinkRemoteDeviceType", "where NVLink 0, 1, 2"},
      {"nvmlDeviceGetFieldValues", ""},
  };
  for (const Case& one : kCases) {
    SCOPED_TRACE(one.function);
    const Machine machine = probe(kOurs, std::string("fail:1:") + one.function);
    ASSERT_EQ(machine.gpus.size(), 4u);
    EXPECT_TRUE(machine.gpus[0].notes.empty()) << all(machine.gpus[0].notes);
    EXPECT_TRUE(mentions(machine.gpus[1].notes, one.said) || *one.said == '\0')
        << all(machine.gpus[1].notes);
    EXPECT_EQ(path_name(gpu_path(machine, 0, 2)), "NV18");
    EXPECT_TRUE(machine.gpus[1].degraded.empty()) << machine.gpus[1].degraded;
    EXPECT_EQ(path_name(gpu_path(machine, 0, 1)), "NV18") << "its links are still known";
  }
  // Links whose state nobody knows are not used.
  const Machine unknown = probe(kOurs, "fail:1:nvmlDeviceGetNvLinkState");
  EXPECT_EQ(unknown.gpus[1].degraded, "none of its 18 NVLinks is up");
  EXPECT_TRUE(
      mentions(unknown.gpus[1].notes, "did not tell the state of NVLink 0 (Unknown Error), 1"));
  const Machine lost = probe(kOurs, "fail:1:nvmlDeviceGetHandleByIndex_v2");
  EXPECT_EQ(lost.gpus.size(), 3u);
  EXPECT_TRUE(mentions(lost.notes, "GPU 1 is lost to the driver: Unknown Error"));
}

TEST(GpuUsers, AreNamedWithTheirMemory) {
  probe(kOurs, "user:2:4711:3072,user:2:99:612,user:1:5:1");
  const auto users = [](const std::string& pci_id) {
    return describe_gpu_users(pci_id, getpid(), kLibrary);
  };
  EXPECT_EQ(users("0000:8a:00.0"), "process 4711 (3.0 GiB), process 99 (612.0 MiB)");
  EXPECT_EQ(users("0000:8A:00.0"), users("0000:8a:00.0"));
  EXPECT_EQ(users(probe(kOurs).gpus[0].pci_id), "") << "this process alone";
  EXPECT_EQ(users("0000:ff:00.0"), "") << "no such GPU";
  EXPECT_EQ(describe_gpu_users("0000:8a:00.0", getpid(), "libno-such.so"), "");
  probe(kOurs, "user:2:4711:3072,fail:2:nvmlDeviceGetComputeRunningProcesses_v3");
  EXPECT_EQ(users("0000:8a:00.0"), "") << "a driver that does not tell";
}

struct Profile {
  const char* name;
  size_t gpus;
  const char* path;  // of two of them
};
class ProbeProfile : public testing::TestWithParam<Profile> {};

TEST_P(ProbeProfile, IsServed) {
  const std::string profile = kShared + GetParam().name + ".yaml";
  if (!std::filesystem::exists(profile)) GTEST_SKIP() << "../shared is absent";
  const Machine machine = probe(profile);
  ASSERT_EQ(machine.gpus.size(), GetParam().gpus);
  EXPECT_EQ(path_name(gpu_path(machine, 0, machine.gpus.size() - 1)), GetParam().path);
  for (const Gpu& gpu : machine.gpus) {
    EXPECT_TRUE(gpu.degraded.empty()) << gpu.degraded;
    EXPECT_TRUE(gpu.notes.empty()) << all(gpu.notes);
    EXPECT_GT(gpu.memory_bytes, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(NvmlMock, ProbeProfile,
                         testing::Values(Profile{"a100", 8, "NV12"}, Profile{"h100", 8, "NV18"},
                                         Profile{"b200", 8, "PHB"}, Profile{"gb200", 8, "NV18"},
                                         Profile{"t4", 4, "PHB"}, Profile{"l40s", 8, "PHB"}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace trireme

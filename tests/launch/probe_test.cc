// SPDX-License-Identifier: Apache-2.0
#include "launch/probe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>

#include "kernels/base/error.h"
#include "topology/machine_file.h"
#include "topology/machine_topology.h"
#include "topology/nccl_xml.h"
#include "topology/probe_machine.h"
#include "topology/text_file.h"
#include "topology/topology.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

const std::string kOurs = TRIREME_SOURCE_DIR "/tests/data/topologies/";
const std::string kShared = TRIREME_SOURCE_DIR "/../shared/data/topologies/";

Options of_files(const std::vector<std::string>& files, bool json = false) {
  Options options;
  options.command = Options::Command::kProbe;
  options.probe.topology = files;
  options.probe.json = json;
  return options;
}

std::string printed(const Options& options) {
  testing::internal::CaptureStdout();
  const int status = probe(options);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_EQ(status, 0);
  return text;
}

void expect_readable(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    size_t width = 0;
    for (const char c : line) width += (c & 0xC0) != 0x80 ? 1 : 0;
    EXPECT_LE(width, 100u) << line;
  }
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

TEST(Probe, AMachineFromAFile) {
  const std::string text = printed(of_files({kOurs + "hgx-4gpu-one-lost.xml"}));
  expect_readable(text);
  EXPECT_TRUE(has(text, "GPU 0    X     NV18  SYS   NV18\n")) << text;
  EXPECT_TRUE(has(text, "mlx5_0   PIX   PIX   SYS   SYS\n")) << text;
  EXPECT_TRUE(has(text, "NV18   3      450.0")) << text;
  EXPECT_TRUE(has(text, "GPU 2: degraded: none of its 18 NVLinks is up")) << text;
  EXPECT_TRUE(has(text, "400 Gb/s")) << text;
}

TEST(Probe, JsonIsATopology) {
  const std::string text = printed(of_files({kOurs + "hgx-4gpu-one-lost.xml"}, true));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  const Topology topology = topology_from_json(text);
  EXPECT_EQ(topology.ranks_size(), 4);
  EXPECT_EQ(topology.islands_size(), 1);
}

TEST(Probe, AFabricFromAFile) {
  const std::string text = printed(of_files({kOurs + "two-leaves-ibnetdiscover.txt"}));
  expect_readable(text);
  EXPECT_TRUE(has(text, "3 nodes, 0 devices")) << text;
  EXPECT_TRUE(has(text, "leaf-a")) << text;
}

TEST(Probe, EveryFileIsReadable) {
  if (!fs::exists(kShared)) GTEST_SKIP() << "../shared is absent";
  for (const auto& entry : fs::recursive_directory_iterator(kShared)) {
    const std::string name = entry.path().filename();
    if (!entry.is_regular_file() || name.starts_with("LICENSE") || name == "COPYING") continue;
    SCOPED_TRACE(entry.path().string());
    expect_readable(printed(of_files({entry.path()})));
  }
}

TEST(Probe, FilesThatAreNone) {
  EXPECT_THROW(probe(of_files({"/does/not/exist"})), Error);
  Options two = of_files({kOurs + "hgx-4gpu-one-lost.xml", kOurs + "two-sockets-hwloc.xml"});
  two.probe.nccl_xml = testing::TempDir() + "/two.xml";
  EXPECT_THROW(probe(two), Error) << "NCCL's file describes one machine";
}

TEST(Probe, NcclXmlIsWritten) {
  Options options = of_files({kOurs + "two-sockets-hwloc.xml"});
  options.probe.nccl_xml = testing::TempDir() + "/nccl.xml";
  printed(options);
  const Topology topology = read_topology_files({options.probe.nccl_xml});
  EXPECT_EQ(topology.ranks_size(), 2);
  EXPECT_EQ(topology.islands(0).link().nvlinks(), 2);
}

// This machine, with a driver that a test made: the way of a real job.
TEST(Probe, ThisMachine) {
  setenv("TRIREME_FAKE_NVML_PROFILE", (kOurs + "four-gpus-profile.yaml").c_str(), 1);
  setenv("TRIREME_FAKE_NVML_FAULTS", "hot:1,lost_links:3", 1);
  Options options;
  options.command = Options::Command::kProbe;
  options.probe.sources = {"/does/not/exist", TRIREME_BUILD_DIR "/libfake_nvml.so", "/dev/null"};
  const std::string text = printed(options);
  expect_readable(text);
  EXPECT_TRUE(has(text, "GPU 1: degraded: hot: 91 C, clocks 40 % down")) << text;
  EXPECT_TRUE(has(text, "GPU 3: degraded: none of its 18 NVLinks is up")) << text;
  EXPECT_TRUE(has(text, "91 C  1188/1980 MHz  95/700 W  0")) << text;
  EXPECT_TRUE(has(text, "NUMA nodes: no node in")) << text;
  options.probe.json = true;
  const Topology topology = topology_from_json(printed(options));
  ASSERT_EQ(topology.ranks_size(), 4);
  EXPECT_EQ(topology.ranks(1).device().health().temperature_c(), 91);
  EXPECT_EQ(topology.islands(0).ranks_size(), 3);
}

TEST(Probe, ThisMachineWithoutGpus) {
  Options options;
  options.command = Options::Command::kProbe;
  options.probe.sources.nvml_library = "libnvidia-ml-absent.so";
  const std::string text = printed(options);
  expect_readable(text);
  EXPECT_TRUE(has(text, "1 node, 1 device\n") || has(text, "GPU 0")) << text;
  options.probe.json = true;
  const Topology topology = topology_from_json(printed(options));
  ASSERT_EQ(topology.nodes_size(), 1);
  EXPECT_TRUE(topology.ranks(0).machine().empty()) << "read and joined";
}

// What a rank sends rank 0 is the same machine there.
TEST(Probe, MachinesTravel) {
  setenv("TRIREME_FAKE_NVML_PROFILE", (kOurs + "four-gpus-profile.yaml").c_str(), 1);
  setenv("TRIREME_FAKE_NVML_FAULTS", "hot:1,lost_link:2:7,slow_link:0:3,fail:3:nvmlDeviceGetUUID",
         1);
  std::vector<Machine> machines = {
      probe_machine({"/does/not/exist", TRIREME_BUILD_DIR "/libfake_nvml.so", "/dev/null"})};
  for (const char* name : {"hgx-4gpu-one-lost.xml", "two-sockets-hwloc.xml"}) {
    const std::string text = read_text_file(kOurs + name, "the file", "");
    machines.push_back(read_machines(text, "file", "host")[0]);
  }
  for (const Machine& machine : machines) {
    Machine again = read_machines(write_nccl_xml(machine, true), machine.source, "other")[0];
    again.source = machine.source;
    EXPECT_EQ(machine_tables(again), machine_tables(machine));
    EXPECT_EQ(topology_to_json(topology_of({again})), topology_to_json(topology_of({machine})));
  }
}

}  // namespace
}  // namespace trireme

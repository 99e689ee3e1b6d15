// SPDX-License-Identifier: Apache-2.0
// Topology files that lie, or attack: each is refused with the line and the reason, or marked.
#include <gtest/gtest.h>

#include <string>

#include "kernels/base/error.h"
#include "topology/machine_file.h"
#include "topology/machine_paths.h"

namespace trireme {
namespace {

std::string repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

std::string cpu(const std::string& inside) {
  return "<system version=\"1\">\n<cpu numaid=\"0\">\n" + inside + "\n</cpu>\n</system>";
}

std::string gpu(const std::string& links, const std::string& bus = "0000:01:00.0") {
  return "<pci busid=\"" + bus + "\" class=\"0x030200\"><gpu dev=\"0\" sm=\"80\">" + links +
         "</gpu></pci>";
}

std::string hwloc(const std::string& inside) {
  return "<topology version=\"2.0\">\n<object type=\"Machine\" gp_index=\"1\">\n" + inside +
         "\n</object>\n</topology>";
}

std::string hwloc_gpu(const std::string& tail) {
  return hwloc(
             "<object type=\"PCIDev\" gp_index=\"2\" pci_busid=\"0000:01:00.0\" pci_type=\"0302 "
             "[10de:1db1] [10de:1212] a1 00\"><object type=\"OSDev\" gp_index=\"3\" "
             "name=\"nvml0\"/>"
             "</object>")
             .insert(0, "") +
         tail;
}

std::string matrix(const std::string& size, const std::string& indexes, const std::string& values) {
  std::string text = hwloc_gpu("");
  return text.insert(text.find("</topology>"),
                     "<distances2hetero name=\"NVLinkBandwidth\" nbobjs=\"" + size +
                         "\"><indexes>" + indexes + "</indexes><u64values>" + values +
                         "</u64values></distances2hetero>");
}

std::string profile(const std::string& inside) {
  return "device_defaults:\n  name: X\ndevices:\n- index: 0\n  pci: {bus_id: \"0000:01:00.0\"}\n" +
         inside;
}

std::string table(const std::string& links) {
  return "func NewTwoNode() TestNode {\nNewTestGPU(0),\nNewTestGPU(1),\n" + links;
}

std::string ib(const std::string& inside) {
  return "\ncaguid=0x1\nCa\t1 \"H-1\"\t# \"node-1 mlx5_0\"\n" + inside;
}

struct Hostile {
  const char* name;
  std::string text;
  const char* reason;  // part of the message
};

const Hostile kHostile[] = {
    // XML itself
    {"empty", "  \n", "it is empty"},
    {"zero_byte", std::string("<system>\0</system>", 18), "it is not text"},
    {"other_root", "<html/>", "its root is <html>"},
    {"cut_off", "<system version=\"1\"><cpu>", "line 1: no element found"},
    {"two_roots", "<system/><system/>", "junk after document element"},
    {"entity_bomb",
     "<!DOCTYPE system [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><system "
     "version=\"1\">&b;</system>",
     "it declares the entity \"a\""},
    {"external_entity",
     "<!DOCTYPE system [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><system>&a;</system>",
     "it declares the entity \"a\""},
    {"deep", repeat("<system>", 5000), "nested deeper than 64 levels"},
    {"many", cpu(repeat("<pci/>", 200'000)), "more than 200000 elements"},
    // NCCL
    {"version", "<system version=\"7\"><cpu/></system>",
     "version 7, known are 1 (NCCL) and 2 (RCCL)"},
    {"no_cpu", "<system version=\"1\"/>", "no <cpu>"},
    {"numa_twice", "<system><cpu numaid=\"1\"/><cpu numaid=\"1\"/></system>",
     "numaid 1 a second time"},
    {"numa_text", "<system><cpu numaid=\"one\"/></system>", "numaid=\"one\""},
    {"affinity", "<system><cpu affinity=\"fffffffff\"/></system>", "needed is a mask"},
    {"affinity_long", "<system><cpu affinity=\"" + repeat("ffffffff,", 3000) + "1\"/></system>",
     "needed is a mask"},
    {"bus", cpu("<pci busid=\"gpu0\"/>"), "line 3: <pci> has busid=\"gpu0\""},
    {"bus_missing", cpu("<pci/>"), "needed is a PCI id"},
    {"bus_twice", cpu(gpu("") + gpu("")), "busid 0000:01:00.0 a second time"},
    {"speed", cpu("<pci busid=\"0000:01:00.0\" link_speed=\"23 GT/s\"/>"),
     "which no PCIe link has"},
    {"speed_nan", cpu("<pci busid=\"0000:01:00.0\" link_speed=\"nan GT/s\"/>"),
     "which no PCIe link has"},
    {"width", cpu("<pci busid=\"0000:01:00.0\" link_width=\"17\"/>"), "which no PCIe link has"},
    {"width_negative", cpu("<pci busid=\"0000:01:00.0\" link_width=\"-16\"/>"),
     "link_width=\"-16\""},
    {"links_negative", cpu(gpu("<nvlink target=\"0000:02:00.0\" count=\"-4\"/>")), "count=\"-4\""},
    {"links_huge", cpu(gpu("<nvlink target=\"0000:02:00.0\" count=\"99999999999999999999\"/>")),
     "needed is a whole number of 0 to 36"},
    {"links_sum", cpu(gpu(repeat("<nvlink target=\"0000:02:00.0\" count=\"30\"/>", 2))),
     "60 NVLinks in all, no GPU has more than 36"},
    {"links_many", cpu(gpu(repeat("<nvlink target=\"0000:02:00.0\" count=\"0\"/>", 200))),
     "at most 128 links of one GPU"},
    {"links_target", cpu(gpu("<nvlink target=\"\" count=\"4\"/>")), "target=\"\""},
    {"gpu_twice", cpu("<pci busid=\"0000:01:00.0\"><gpu dev=\"0\"/><gpu dev=\"1\"/></pci>"),
     "a sibling on the same PCI device"},
    {"net_negative", cpu("<nic><net name=\"a\" speed=\"-5\"/></nic>"), "speed=\"-5\""},
    {"net_nan", cpu("<nic><net name=\"a\" speed=\"nan\"/></nic>"), "needed are Mbit/s"},
    {"net_infinite", cpu("<nic><net name=\"a\" speed=\"1e300\"/></nic>"), "needed are Mbit/s"},
    {"net_name", cpu("<nic><net name=\"" + repeat("a", 5000) + "\"/></nic>"),
     "at most 128 are read"},
    // hwloc
    {"hwloc_version", "<topology version=\"1.11\"/>", "known are 2 and 3"},
    {"hwloc_numa", hwloc(repeat("<object type=\"NUMANode\" os_index=\"0\"/>", 2)),
     "os_index 0 a second time"},
    {"hwloc_memory", hwloc("<object type=\"NUMANode\" os_index=\"0\" local_memory=\"-1\"/>"),
     "local_memory=\"-1\""},
    {"hwloc_speed",
     hwloc("<object type=\"PCIDev\" gp_index=\"2\" pci_busid=\"0000:01:00.0\" pci_type=\"0302 "
           "[10de:1db1]\" pci_link_speed=\"nan\"/>"),
     "pci_link_speed=\"nan\""},
    {"hwloc_type", hwloc("<object type=\"PCIDev\" pci_busid=\"0000:01:00.0\" pci_type=\"GPU\"/>"),
     "pci_type=\"GPU\""},
    {"hwloc_cycle",
     hwloc(
         repeat("<object type=\"PCIDev\" gp_index=\"2\" pci_busid=\"0000:01:00.0\" pci_type=\"0302 "
                "[10de:1db1]\"/>",
                2)),
     "pci_busid 0000:01:00.0 a second time"},
    {"hwloc_index",
     hwloc("<object type=\"PCIDev\" gp_index=\"2\" pci_busid=\"0000:01:00.0\" pci_type=\"0302 "
           "[10de:1db1]\"/>"
           "<object type=\"PCIDev\" gp_index=\"2\" pci_busid=\"0000:02:00.0\" pci_type=\"0302 "
           "[10de:1db1]\"/>"),
     "gp_index 2 a second time"},
    {"matrix_size", matrix("99999999", "OSDev:3", "1"), "nbobjs=\"99999999\""},
    {"matrix_values", matrix("2", "OSDev:3 OSDev:4", "1 2 3"), "2 indexes and 3 values"},
    {"matrix_negative", matrix("2", "OSDev:3 OSDev:4", "0 -25000 0 0"), "the value -25000"},
    {"matrix_huge", matrix("2", "OSDev:3 OSDev:4", "0 4000000 0 0"), "no GPU has so many NVLinks"},
    // YAML
    {"yaml_list", "- 1\n- 2\n", "YAML without device_defaults or blocks"},
    {"yaml_broken", "a: [1, 2\nb: }", "line 2"},
    {"yaml_alias", "blocks: &a\n- *a\n", "it has an alias"},
    {"yaml_deep", "blocks: " + repeat("[", 5000), "nested deeper than 32 levels"},
    {"yaml_twice", "blocks: 1\nblocks: 2\n", "the key \"blocks\" is there a second time"},
    {"yaml_documents", "blocks: 1\n---\nblocks: 2\n", "second document"},
    {"switch_cycle",
     "switches:\n  a:\n    switches: [b]\n  b:\n    switches: [a]\nblocks:\n- switch: a\n  nodes: "
     "[x]\n",
     "in a cycle"},
    {"switch_parents",
     "switches:\n  a:\n    switches: [c]\n  b:\n    switches: [c]\nblocks:\n- switch: c\n  nodes: "
     "[x]\n",
     "is below b and below a"},
    {"node_twice", "blocks:\n- switch: a\n  nodes: [\"n[1-3]\", n2]\n",
     "the node n2 is there a second time"},
    {"node_bomb", "blocks:\n- switch: a\n  nodes: [\"n[1-999999999999]\"]\n", "or too long"},
    {"node_range", "blocks:\n- switch: a\n  nodes: [\"n[5-1]\"]\n", "is no list"},
    {"profile_links", profile("nvlink: {links_per_gpu: 99, switches: [{bdf: \"0000:05:00.0\"}]}"),
     "links_per_gpu: found \"99\""},
    {"profile_bus", "device_defaults: {name: X}\ndevices:\n- index: 0\n", "without a PCI id"},
    {"profile_width", profile("  pcie: {max_link_width: 7}\n"), "7 lanes, which no PCIe link has"},
    {"profile_memory", profile("  memory: {total_bytes: -1}\n"),
     "memory.total_bytes: found \"-1\""},
    // text
    {"ib_rate", ib("[1](1) \"S-1\"[1]\t# lid 1 4xABC"), "without a rate such as 4xNDR"},
    {"ib_twice", ib("\ncaguid=0x1\nCa\t1 \"H-1\"\t# \"node-1 mlx5_0\""),
     "the node H-1 is there a second"},
    {"ib_port", ib("[999](1) \"S-1\"[1]\t# 4xNDR"), "a port that is none of 0 to 255"},
    {"ib_other", ib("\nhello world\n"), "is nothing that ibnetdiscover prints"},
    {"table_gpu", table("node.AddLink(0, 7, nvml.SingleNVLINKLink)\n"),
     "the table has GPUs 0 to 1"},
    {"table_self", table("node.AddLink(1, 1, nvml.SingleNVLINKLink)\n"),
     "a link of a GPU to itself"},
    {"table_kind", table("node.AddLink(0, 1, nvml.HundredNVLINKLinks)\n"), "which is not known"},
};

class HostileMachine : public testing::TestWithParam<Hostile> {};

TEST_P(HostileMachine, IsRefusedWithTheReason) {
  try {
    read_machines(GetParam().text, "file", "host");
    FAIL() << "taken";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code(), Code::kInvalidArgument);
    EXPECT_NE(message.find(GetParam().reason), std::string::npos) << message;
    EXPECT_TRUE(message.starts_with("cannot read the topology file: ")) << message;
  }
}

INSTANTIATE_TEST_SUITE_P(Files, HostileMachine, testing::ValuesIn(kHostile),
                         [](const auto& test) { return std::string(test.param.name); });

// ---- what is used, and marked ----

TEST(OddMachine, MoreLinksThanTheGpuHas) {
  const Machine machine = read_machines(
      cpu(gpu("<nvlink target=\"0000:02:00.0\" count=\"18\" tclass=\"0x068000\"/>")), "f", "h")[0];
  EXPECT_TRUE(machine.gpus[0].links.empty());
  EXPECT_NE(machine.gpus[0].degraded.find("18 NVLinks are claimed"), std::string::npos);
  EXPECT_NE(machine.gpus[0].degraded.find("has 12"), std::string::npos);
}

TEST(OddMachine, EndsThatDisagree) {
  const Machine machine = read_machines(
      cpu(gpu("<nvlink target=\"0000:02:00.0\" count=\"4\" tclass=\"0x030200\"/>") +
          gpu("<nvlink target=\"0000:01:00.0\" count=\"2\" tclass=\"0x030200\"/>", "0000:02:00.0")),
      "f", "h")[0];
  EXPECT_EQ(path_name(gpu_path(machine, 0, 1)), "NV2");
  EXPECT_EQ(path_name(gpu_path(machine, 1, 0)), "NV2");
  ASSERT_EQ(machine.gpus[0].notes.size(), 1u);
  EXPECT_NE(machine.gpus[0].notes[0].find("2 used"), std::string::npos);
}

TEST(OddMachine, TwoHostsInOneFile) {
  const auto machines =
      read_machines("<system version=\"1\"><cpu host_hash=\"0xa\" numaid=\"0\">" + gpu("") +
                        "</cpu><cpu host_hash=\"0xb\" numaid=\"0\">" + gpu("") + "</cpu></system>",
                    "f", "h");
  ASSERT_EQ(machines.size(), 2u);
  EXPECT_EQ(machines[0].host, "h-0");
  EXPECT_EQ(machines[1].host, "h-1");
  EXPECT_EQ(machines[1].gpus.size(), 1u);
}

// One by one up to the most hosts, beyond which a list would have no bound.
TEST(OddMachine, MoreHostsThanAFabricHas) {
  std::string text = "blocks:\n- switch: s\n  nodes: [";
  for (int i = 0; i <= 65536; ++i) text += "a" + std::to_string(i) + ", ";
  text += "\"n[0-99999]\"]\n";
  try {
    read_machines(text, "f", "h");
    ADD_FAILURE() << "was taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("\"a65536\" is no list such as node[1-18], or too"),
              std::string::npos)
        << error.what();
  }
}

TEST(OddMachine, UnknownNumaWidthAndSpeed) {
  const Machine machine = read_machines(
      "<system version=\"1\"><cpu numaid=\"-1\"><pci busid=\"0000:01:00.0\" "
      "link_speed=\"Unknown\" link_width=\"255\"><gpu dev=\"7\"/></pci></cpu></system>",
      "f", "h")[0];
  EXPECT_EQ(machine.gpus[0].index, 7);
  EXPECT_EQ(machine.pci[0].device_class, 0x030200u) << "its class is told by what is on it";
  EXPECT_EQ(pci_bytes_per_s(machine.pci[0].link), 0);
}

// A board whose links are all down is said, not believed to have none.
TEST(OddMachine, EveryLinkDown) {
  const std::string device =
      "\" class=\"0x030200\" device=\"0x20b2\"><gpu dev=\"0\" sm=\"80\"/></pci>";
  const Machine machine = read_machines(
      cpu("<pci busid=\"0000:01:00.0" + device + "<pci busid=\"0000:02:00.0" + device), "f",
      "h")[0];
  ASSERT_EQ(machine.notes.size(), 1u);
  EXPECT_NE(machine.notes[0].find("no NVLink is up on any NVIDIA A100-SXM4-80GB"),
            std::string::npos);
}

}  // namespace
}  // namespace trireme

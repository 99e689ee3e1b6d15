// SPDX-License-Identifier: Apache-2.0
#include "launch/preflight.h"

#include <gtest/gtest.h>

#include <string>

#include "kernels/base/error.h"

namespace trireme {
namespace {

// Two ranks on each of three hosts of eight cores.
TEST(Preflight, CoresThatALauncherTakesAwayAreTold) {
  Topology topology;
  std::vector<Machine> machines;
  for (int rank = 1; rank <= 6; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host("h" + std::to_string((rank + 1) / 2));
    info.mutable_device()->set_kind(DEVICE_KIND_CPU);
    for (int core = 0; core < 8; ++core) info.mutable_device()->add_cpus(core);
    if (rank % 2 == 0) continue;
    Machine& machine = machines.emplace_back();
    machine.host = info.host();
    machine.numa.resize(2);
    machine.numa[0].cores = {0, 1, 2, 3};
    machine.numa[1].cores = {4, 5, 6, 7};
  }
  EXPECT_EQ(describe_unused_cores(topology, machines), "");
  const auto bind = [&](int rank, std::vector<int32_t> cores) {
    auto& cpus = *topology.mutable_ranks(rank - 1)->mutable_device()->mutable_cpus();
    cpus.Assign(cores.begin(), cores.end());
  };
  bind(1, {0, 1, 2, 3});  // a NUMA node each is all of them
  bind(2, {4, 5, 6, 7});
  EXPECT_EQ(describe_unused_cores(topology, machines), "");
  for (const int rank : {3, 4, 5, 6}) bind(rank, {rank % 2});  // as Open MPI does by itself
  const std::string told = describe_unused_cores(topology, machines);
  EXPECT_EQ(told.find("the ranks on h2 may run on 2 of its 8 cores, as on 1 more: "), 0u) << told;
  // Of ranks on GPUs and hosts that were not probed nothing is said.
  for (const int rank : {3, 4, 5, 6}) {
    topology.mutable_ranks(rank - 1)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  }
  EXPECT_EQ(describe_unused_cores(topology, machines), "");
  EXPECT_EQ(describe_unused_cores(topology, {}), "");
}

TEST(Preflight, TwoMachinesOfOneNameAreRefused) {
  require_names({{"a", "1"},
                 {"a", "1"},
                 {"b", "2"},
                 {"a", "1"},
                 {"c", "1"},
                 {"b", ""}});  // c: in a container
  try {
    require_names({{"a", "1"}, {"b", "2"}, {"b", "2"}, {"b", "3"}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    EXPECT_NE(
        std::string(error.what()).find("ranks 1 and 3 run on two machines that are both named b"),
        std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace trireme

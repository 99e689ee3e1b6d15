// SPDX-License-Identifier: Apache-2.0
#include "topology/cgroup.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A machine's files below a folder of its own.
class CgroupTest : public testing::Test {
 protected:
  CgroupTest() { std::filesystem::remove_all(root_); }
  ~CgroupTest() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ / path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text << '\n';
  }
  CgroupLimits limits() const { return cgroup_limits(root_.string()); }

 private:
  const std::filesystem::path root_ =
      std::filesystem::path(testing::TempDir()) /
      ("trireme-cgroup-" + std::to_string(getpid()) + "-" +
       testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(CgroupTest, NothingIsNoLimit) {
  EXPECT_EQ(limits().cores, 0);
  EXPECT_EQ(limits().memory_left, UINT64_MAX);
}

// As Slurm nests them: the step may use less than the job, and no group more than those above it.
TEST_F(CgroupTest, TheTightestOfAllAboveCounts) {
  write("proc/self/cgroup", "0::/slurm/job_7/step_0");
  write("sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000");
  write("sys/fs/cgroup/slurm/job_7/cpu.max", "250000 100000");
  write("sys/fs/cgroup/slurm/cpu.max", "800000 100000");
  write("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max");
  write("sys/fs/cgroup/slurm/job_7/memory.max", std::to_string(1000 * kMiB));
  write("sys/fs/cgroup/slurm/job_7/memory.current", std::to_string(700 * kMiB));
  EXPECT_DOUBLE_EQ(limits().cores, 2.5);
  EXPECT_EQ(limits().memory_left, 300 * kMiB);
}

// The pages of a checkpoint that was read are no memory that is missing.
TEST_F(CgroupTest, ThePageCacheGivesWay) {
  write("proc/self/cgroup", "0::/");
  write("sys/fs/cgroup/memory.max", std::to_string(1000 * kMiB));
  write("sys/fs/cgroup/memory.current", std::to_string(900 * kMiB));
  write("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file " + std::to_string(500 * kMiB) +
                                         "\nactive_file " + std::to_string(100 * kMiB));
  EXPECT_EQ(limits().memory_left, 700 * kMiB);
  write("sys/fs/cgroup/memory.current", std::to_string(2000 * kMiB));
  EXPECT_EQ(limits().memory_left, 0u);
}

TEST_F(CgroupTest, VersionOne) {
  write("proc/self/cgroup", "4:memory:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/x\n0::/x");
  write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "50000");
  write("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", std::to_string(64 * kMiB));
  write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", std::to_string(60 * kMiB));
  write("sys/fs/cgroup/memory/box/memory.stat",
        "inactive_file 0\ntotal_inactive_file " + std::to_string(16 * kMiB));
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(600 * kMiB));
  EXPECT_DOUBLE_EQ(limits().cores, 0.5);
  EXPECT_EQ(limits().memory_left, 20 * kMiB);
}

// In a container's own view the path is the host's, and only the top is there.
TEST_F(CgroupTest, APathOfTheHostLeadsToTheTop) {
  write("sys/fs/cgroup/cpu.max", "300000 100000");
  for (const char* const path : {"/kubepods/pod1/box", "/../../box", "", "no slash"}) {
    write("proc/self/cgroup", std::string("0::") + path);
    EXPECT_DOUBLE_EQ(limits().cores, 3) << path;
  }
}

TEST_F(CgroupTest, NonsenseIsNoLimit) {
  write("proc/self/cgroup", "0::/\nno colon\n:\n::\n");
  for (const char* const text :
       {"", "nan 100000", "-5 100000", "100000", "100000 0", "x y", "0 1"}) {
    write("sys/fs/cgroup/cpu.max", text);
    EXPECT_EQ(limits().cores, 0) << text;
  }
  write("sys/fs/cgroup/memory.current", "5");
  for (const char* const text : {"", "max", "-1", "nan", "1e300"}) {
    write("sys/fs/cgroup/memory.max", text);
    EXPECT_EQ(limits().memory_left, UINT64_MAX) << text;
  }
}

}  // namespace
}  // namespace trireme

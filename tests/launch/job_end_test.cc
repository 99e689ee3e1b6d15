// SPDX-License-Identifier: Apache-2.0
#include "launch/job_end.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(JobEnd, ReadsWhatSqueuePrints) {
  EXPECT_EQ(parse_time_left("4"), seconds(4));
  EXPECT_EQ(parse_time_left("9:58\n"), seconds(598));
  EXPECT_EQ(parse_time_left("2:03:04\n"), seconds(7384));
  EXPECT_EQ(parse_time_left("1-02:03:04"), seconds(93784));
  EXPECT_EQ(parse_time_left("0:00"), seconds(0));
  for (const char* text : {"", "UNLIMITED", "NOT_SET", "INVALID", "1-2", "1-02:03", "1:2:3:4", "-5",
                           "1:-2", "1:", ":1", "99999999999999999999", "1x", "2-1-01:01:01"}) {
    EXPECT_EQ(parse_time_left(text), std::nullopt) << text;
  }
}

TEST(JobEnd, AChildIsBoundedInTime) {
  EXPECT_EQ(output_of({"printf", "a b"}, seconds(5)), "a b");
  EXPECT_EQ(output_of({"false"}, seconds(5)), std::nullopt);
  EXPECT_EQ(output_of({"trireme-no-such-program"}, seconds(5)), std::nullopt);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(output_of({"sleep", "30"}, milliseconds(50)), std::nullopt);
  // It closes its output and stays.
  EXPECT_EQ(output_of({"sh", "-c", "exec >&-; sleep 30"}, milliseconds(50)), std::nullopt);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(10));
  EXPECT_LE(output_of({"head", "-c", "1000000", "/dev/zero"}, seconds(5))->size(), 5000u);
}

// A squeue of this test's own, in front of the PATH.
class Squeue {
 public:
  explicit Squeue(const std::string& script) : path_(getenv("PATH")) {
    std::filesystem::create_directory(folder_);
    std::ofstream(folder_ / "squeue") << "#!/bin/sh\n" << script << "\n";
    chmod((folder_ / "squeue").c_str(), 0755);
    setenv("PATH", (folder_.string() + ":" + path_).c_str(), 1);
  }
  ~Squeue() {
    setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }

 private:
  const std::string path_;
  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("trireme-squeue-" + std::to_string(getpid()));
};

TEST(JobEnd, AsksSlurmAndElseTakesTheEnvironments) {
  LaunchInfo launch;
  EXPECT_EQ(find_job_end(launch), std::nullopt);
  const WallClock::time_point told = WallClock::now() + std::chrono::hours(5);
  launch.slurm_job_end = told;
  EXPECT_EQ(find_job_end(launch), told);
  launch.slurm_job_id = "17";
  {
    const Squeue squeue("[ \"$3\" = 17 ] && echo 1:30:00");
    const auto left = *find_job_end(launch) - WallClock::now();
    EXPECT_GT(left, seconds(5300));
    EXPECT_LE(left, seconds(5401));  // the clock was read before squeue was asked
  }
  {
    const Squeue squeue("exit 1");
    EXPECT_EQ(find_job_end(launch), told);
  }
  {
    const Squeue squeue("echo UNLIMITED");
    EXPECT_EQ(find_job_end(launch), std::nullopt) << "the limit was taken away";
    launch.slurm_job_end = std::nullopt;
    EXPECT_EQ(find_job_end(launch), std::nullopt);
  }
  {
    const Squeue squeue("echo INVALID");
    launch.slurm_job_end = told;
    EXPECT_EQ(find_job_end(launch), told);
  }
}

TEST(JobEnd, TimesForEverybody) {
  EXPECT_EQ(utc(WallClock::time_point(seconds(1764106803))), "2025-11-25T21:40:03Z");
}

}  // namespace
}  // namespace trireme

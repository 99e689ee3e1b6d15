// SPDX-License-Identifier: Apache-2.0
#include "launch/status_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace trireme {
namespace {

class StatusFileTest : public testing::Test {
 protected:
  StatusFileTest() { std::filesystem::create_directory(folder_); }
  ~StatusFileTest() override { std::filesystem::remove_all(folder_); }
  nlohmann::json read() const {
    std::ifstream file(path_);
    return nlohmann::json::parse(file);
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("trireme-status-" + std::to_string(getpid()));
  const std::string path_ = folder_ / "status.json";
};

TEST_F(StatusFileTest, TellsAJobFromStartToEnd) {
  StatusFile file(path_);
  EXPECT_EQ(read()["state"], "starting");
  EXPECT_EQ(read()["pid"], getpid());
  EXPECT_TRUE(read()["exit_status"].is_null());
  EXPECT_FALSE(read()["host"].get<std::string>().empty());

  file.set_state(StatusFile::State::kLoading);
  EXPECT_EQ(read()["state"], "loading");
  file.set_address("127.0.0.1:7");
  file.set_state(StatusFile::State::kServing);
  EXPECT_EQ(read()["state"], "serving");
  EXPECT_EQ(read()["address"], "127.0.0.1:7");
  file.set_state(StatusFile::State::kDraining, "by a signal");
  EXPECT_EQ(read()["reason"], "by a signal");
  file.set_first_failure("first failure: rank 2");
  file.set_first_failure("first failure: rank 1");  // which is none
  file.end(1, "cannot go on: \"\xff\"\n");
  const nlohmann::json json = read();
  EXPECT_EQ(json["state"], "ended");
  EXPECT_EQ(json["exit_status"], 1);
  EXPECT_EQ(json["first_failure"], "first failure: rank 2");
  EXPECT_GE(json["updated"], json["started"]);
  EXPECT_GT(json["started"], 1.7e9);
}

TEST_F(StatusFileTest, IsForItsOwnerAndNeverHalfThere) {
  {
    std::ofstream other(path_);  // what an earlier job left, readable by all
    other << "{}";
  }
  const StatusFile file(path_);
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  // No temporary file is left beside it.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

// A shell script takes a field by its line.
TEST_F(StatusFileTest, HasAFieldALine) {
  StatusFile file(path_);
  file.end(0, "two\nlines");
  std::ifstream text(path_);
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  EXPECT_EQ(lines.size(), 11u);
  EXPECT_NE(std::find(lines.begin(), lines.end(), "  \"exit_status\": 0,"), lines.end());
}

TEST_F(StatusFileTest, WhereItCannotBeWritten) {
  try {
    const StatusFile file(folder_ / "absent" / "status.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    EXPECT_NE(std::string(error.what()).find("--status_file"), std::string::npos) << error.what();
  }
  StatusFile file(path_);
  std::filesystem::remove_all(folder_);
  file.set_state(StatusFile::State::kServing);  // is logged, and harms nobody
  StatusFile none("");
  none.end(0, "");
}

}  // namespace
}  // namespace trireme

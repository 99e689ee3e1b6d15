// SPDX-License-Identifier: Apache-2.0
#include "coordinator/private_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "kernels/base/error.h"

namespace trireme {
namespace {

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// As on a file system that is full after some of it: the kernel takes a part of the bytes.
TEST(PrivateFile, WhatDoesNotFitLeavesTheOldOneAndSaysWhy) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("trireme-private-" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  const std::string path = folder / "file";
  write_private_file(path, "old", "--flag");
  EXPECT_EQ(read(path), "old");

  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  rlimit small = limit;
  small.rlim_cur = 1000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  errno = 0;
  try {
    write_private_file(path, std::string(4000, 'x'), "--flag");
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, before);

  EXPECT_EQ(message, "cannot write --flag " + path + ": " + std::strerror(EFBIG));
  EXPECT_EQ(read(path), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  write_private_file(path, std::string(4000, 'x'), "--flag");
  EXPECT_EQ(read(path).size(), 4000u);
  std::filesystem::remove_all(folder);
}

TEST(PrivateFile, WhatCannotBeReadIsNamedWithItsFlagAndWhy) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("trireme-flag-file-" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  const std::string path = folder / "file";
  const auto refusal = [&](const std::string& file) -> std::string {
    try {
      return read_flag_file(file, "--tls_key");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kNotFound);
      return error.what();
    }
  };
  EXPECT_EQ(refusal(path), "cannot read --tls_key " + path + ": " + std::strerror(ENOENT));
  EXPECT_EQ(refusal(folder),
            "cannot read --tls_key " + folder.string() + ": " + std::strerror(EISDIR));
  std::ofstream(path) << "";
  EXPECT_EQ(refusal(path), "cannot read --tls_key " + path + ": it is empty");
  std::ofstream(path) << "a key\n";
  EXPECT_EQ(refusal(path), "a key\n");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace trireme

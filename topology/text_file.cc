// SPDX-License-Identifier: Apache-2.0
#include "topology/text_file.h"

#include <cstdint>
#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kMaxFileBytes = 16u << 20;

}  // namespace

std::string read_text_file(const std::string& path, const std::string& what,
                           const std::string& advice) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::is_regular_file(status)) {
    const char* const found = std::filesystem::is_directory(status) ? "it is a folder"
                              : std::filesystem::exists(status)     ? "it is no regular file"
                                                                    : "there is no such file";
    throw Error(Code::kNotFound, "cannot open " + what + " " + path + ": " + found + "; " + advice);
  }
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error || size > kMaxFileBytes) {
    throw Error(Code::kInvalidArgument, "cannot read " + what + " " + path + ": it has " +
                                            std::to_string(size) +
                                            " bytes, at most 16 MiB are read");
  }
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (!file) {
    throw Error(Code::kFailedPrecondition,
                "cannot read " + what + " " + path + ": it is not readable to its end");
  }
  return text;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Files made by tests: a folder that cleans up after itself, and well-formed or hostile model
// files.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "trireme-XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& bytes) const {
    const std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

 private:
  std::string path_;
};

inline std::string read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string test_data(const std::string& name) {
  return std::string(TRIREME_SOURCE_DIR) + "/tests/data/" + name;
}

// The action must throw Error with this code and this part of its message.
inline void expect_error(Code code, const std::string& part, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "no error; expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(code_name(error.code()), std::string(code_name(code))) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << "message: " << error.what() << "\nexpected: " << part;
  }
}

template <typename T>
std::string bytes_of(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::string safetensors_file(const std::string& header, size_t data_bytes) {
  return bytes_of(uint64_t{header.size()}) + header + std::string(data_bytes, '\0');
}

// Builds a GGUF file piece by piece; what it is given is written unchecked.
class GgufBuilder {
 public:
  static std::string text(const std::string& value) {
    return bytes_of(uint64_t{value.size()}) + value;
  }

  GgufBuilder& raw(const std::string& key, uint32_t type, const std::string& value) {
    metadata_ += text(key) + bytes_of(type) + value;
    ++metadata_count;
    return *this;
  }
  GgufBuilder& integer(const std::string& key, uint32_t value) {
    return raw(key, 4, bytes_of(value));
  }
  GgufBuilder& number(const std::string& key, float value) { return raw(key, 6, bytes_of(value)); }
  GgufBuilder& string(const std::string& key, const std::string& value) {
    return raw(key, 8, text(value));
  }
  // dimensions in GGUF's order: columns first.
  GgufBuilder& tensor(const std::string& name, const std::vector<uint64_t>& dimensions,
                      uint32_t type, uint64_t offset) {
    directory_ += text(name) + bytes_of(static_cast<uint32_t>(dimensions.size()));
    for (uint64_t size : dimensions) directory_ += bytes_of(size);
    directory_ += bytes_of(type) + bytes_of(offset);
    ++tensor_count;
    return *this;
  }
  // An F32 tensor with its values, placed behind the last.
  GgufBuilder& values(const std::string& name, const std::vector<uint64_t>& dimensions,
                      const std::vector<float>& values) {
    data.resize((data.size() + 31) / 32 * 32);
    tensor(name, dimensions, 0, data.size());
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    return *this;
  }

  std::string build() const {
    std::string file = magic + bytes_of(version) + bytes_of(tensor_count) +
                       bytes_of(metadata_count) + metadata_ + directory_;
    file.resize((file.size() + 31) / 32 * 32);
    return file + data;
  }

  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t tensor_count = 0;
  uint64_t metadata_count = 0;
  std::string data;

 private:
  std::string metadata_;
  std::string directory_;
};

}  // namespace trireme

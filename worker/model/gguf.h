// SPDX-License-Identifier: Apache-2.0
// A GGUF file (v2, v3): typed metadata and a directory of tensors, memory-mapped. Every count,
// length and offset of the file is checked before use. Immutable after construction; any thread may
// read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "worker/model/mapped_file.h"

namespace trireme {

struct GgufTensor {
  uint32_t type = 0;  // ggml type number
  std::vector<int64_t>
      shape;  // as the row-major shape of the matrix: [rows, cols] (GGUF stores it reversed)
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;
};

class GgufFile {
 public:
  // Throws kNotFound or kInvalidArgument naming the file and the field.
  explicit GgufFile(const std::string& path);

  // Metadata by key; nullopt where the key is absent, kInvalidArgument where its type is another.
  bool has(std::string_view key) const { return find(key) != nullptr; }
  bool is_array(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string> string(std::string_view key) const;
  std::optional<std::vector<std::string>> strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;

  const std::unordered_map<std::string, GgufTensor>& tensors() const { return tensors_; }
  const MappedFile& file() const { return file_; }

 private:
  using Value = std::variant<int64_t, double, bool, std::string, std::vector<std::string>,
                             std::vector<int64_t>, std::vector<double>>;
  const Value* find(std::string_view key) const;
  template <typename T>
  std::optional<T> get(std::string_view key, const char* needed) const;

  MappedFile file_;
  std::unordered_map<std::string, Value> metadata_;
  std::unordered_map<std::string, GgufTensor> tensors_;
};

}  // namespace trireme

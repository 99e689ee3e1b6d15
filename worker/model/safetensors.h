// SPDX-License-Identifier: Apache-2.0
// A safetensors file: eight bytes of header length, a JSON header, the tensors' bytes;
// memory-mapped. Everything in the header is checked before use. Immutable after construction.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "worker/model/mapped_file.h"

namespace trireme {

struct SafetensorsTensor {
  std::string dtype;           // "BF16"; not necessarily one that we know
  std::vector<int64_t> shape;  // empty for a scalar
  uint64_t offset = 0;         // from the start of the file
  uint64_t bytes = 0;
};

class SafetensorsFile {
 public:
  // Throws kNotFound or kInvalidArgument naming the file and the tensor.
  explicit SafetensorsFile(const std::string& path);

  const std::unordered_map<std::string, SafetensorsTensor>& tensors() const { return tensors_; }
  const MappedFile& file() const { return file_; }

 private:
  MappedFile file_;
  std::unordered_map<std::string, SafetensorsTensor> tensors_;
};

// The weight_map of model.safetensors.index.json: tensor name to file name, a plain name that stays
// in the index's directory. Throws kNotFound or kInvalidArgument.
std::unordered_map<std::string, std::string> read_safetensors_index(const std::string& path);

}  // namespace trireme

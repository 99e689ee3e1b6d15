// SPDX-License-Identifier: Apache-2.0
// A model as llama.cpp writes it: one GGUF file, or several named NAME-00001-of-00003.gguf and so
// on. The first part holds the metadata of the model; the tensors lie in any. Immutable after
// construction; any thread may read.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "worker/model/gguf.h"

namespace trireme {

class GgufSet {
 public:
  // path: the file, or the first part. Throws kNotFound for a missing part, kInvalidArgument for
  // parts that do not fit together, naming the file.
  explicit GgufSet(const std::string& path);

  const GgufFile& metadata() const { return files_.front(); }
  const std::vector<GgufFile>& files() const { return files_; }  // all parts, in order

  struct Place {
    const GgufTensor* tensor = nullptr;  // null: no part has it
    const GgufFile* file = nullptr;
  };
  Place find(const std::string& name) const;
  const std::unordered_map<std::string, Place>& tensors() const { return tensors_; }

 private:
  void add_parts(int64_t count);
  void index_tensors();

  std::vector<GgufFile> files_;
  std::unordered_map<std::string, Place> tensors_;
};

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// The metadata of a GGUF file under the keys of its architecture, checked as they are read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "worker/model/family.h"
#include "worker/model/gguf_set.h"

namespace trireme {

// Names are without the architecture: "block_count" means "llama.block_count". Immutable.
class GgufMetadata {
 public:
  // files must outlive this.
  GgufMetadata(const GgufSet& files, const std::string& architecture)
      : files_(files), file_(files.metadata()), prefix_(architecture + ".") {}

  const GgufSet& files() const { return files_; }
  const GgufFile& file() const { return file_; }
  std::string key(const char* name) const { return prefix_ + name; }

  // Throws kInvalidArgument: the file, "key is found; needed".
  [[noreturn]] void refuse(const std::string& key, const std::string& found,
                           const std::string& needed) const;

  // fallback < 0: the key must be there.
  int32_t integer(const char* name, int32_t min, int32_t max, int32_t fallback = -1) const;
  // fallback NaN: the key must be there.
  double number(const char* name, double min, double max, double fallback) const;
  std::string string(const char* name) const;  // "" where it is absent
  bool has(const char* name) const;

 private:
  const GgufSet& files_;
  const GgufFile& file_;
  std::string prefix_;
};

bool is_type(const GgufTensor& tensor, const char* name);

// Bases, scaling and rotating channels; the dimensions of `spec` are filled before.
void read_gguf_rope(const GgufMetadata& metadata, ModelSpec& spec);

}  // namespace trireme

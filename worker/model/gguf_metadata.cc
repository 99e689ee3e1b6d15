// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gguf_metadata.h"

#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "worker/model/quant.h"

namespace trireme {

void GgufMetadata::refuse(const std::string& key, const std::string& found,
                          const std::string& needed) const {
  throw Error(Code::kInvalidArgument,
              file_.file().path() + ": " + key + " is " + found + "; " + needed);
}

int32_t GgufMetadata::integer(const char* name, int32_t min, int32_t max, int32_t fallback) const {
  const auto value = file_.integer(key(name));
  if (!value && fallback >= 0) return fallback;
  if (!value || *value < min || *value > max) {
    refuse(key(name), value ? std::to_string(*value) : "missing",
           "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " is needed");
  }
  return static_cast<int32_t>(*value);
}

double GgufMetadata::number(const char* name, double min, double max, double fallback) const {
  const auto value = file_.number(key(name));
  if (!value && !std::isnan(fallback)) return fallback;
  if (!value || !(*value >= min && *value <= max)) {
    refuse(key(name), value ? std::to_string(*value) : "missing",
           "a number from " + std::to_string(min) + " to " + std::to_string(max) + " is needed");
  }
  return *value;
}

std::string GgufMetadata::string(const char* name) const {
  return file_.string(key(name)).value_or("").substr(0, 80);
}

bool GgufMetadata::has(const char* name) const { return file_.has(key(name)); }

bool is_type(const GgufTensor& tensor, const char* name) {
  return std::strcmp(find_ggml_type(tensor.type)->name, name) == 0;
}

}  // namespace trireme

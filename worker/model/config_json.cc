// SPDX-License-Identifier: Apache-2.0
#include "worker/model/config_json.h"

#include <utility>

#include "kernels/base/error.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 16ull << 20;

}  // namespace

json read_json_object(const std::string& path, uint64_t max_bytes) {
  const MappedFile file(path);
  if (file.size() > max_bytes) {
    throw Error(Code::kInvalidArgument, "cannot read " + path + ": it has " +
                                            std::to_string(file.size()) + " bytes; at most " +
                                            std::to_string(max_bytes) + " are expected");
  }
  return parse_json_object({reinterpret_cast<const char*>(file.data()), file.size()},
                           "cannot read " + path);
}

ConfigJson::ConfigJson(const std::string& path)
    : ConfigJson(path, "", read_json_object(path, kMaxConfigBytes)) {}

ConfigJson::ConfigJson(const std::string& path, const std::string& prefix, json object)
    : path_(path), prefix_(prefix), object_(std::move(object)) {}

const json* ConfigJson::find(const char* key) const {
  const auto entry = object_.find(key);
  return entry == object_.end() || entry->is_null() ? nullptr : &*entry;
}

bool ConfigJson::has(const char* key) const { return find(key) != nullptr; }

void ConfigJson::refuse(const char* key, const std::string& needed) const {
  const json* value = find(key);
  std::string found = "missing";
  if (value != nullptr) {
    using Handler = json::error_handler_t;
    found = value->is_structured() ? value->is_array() ? "a list" : "an object"
                                   : value->dump(-1, ' ', true, Handler::replace).substr(0, 80);
  }
  throw Error(Code::kInvalidArgument,
              path_ + ": " + prefix_ + key + " is " + found + "; " + needed);
}

namespace {

// JSON has one kind of number; 4096.0 is no integer here.
bool in_range(const json& value, int64_t min, int64_t max) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX)) return false;
  return value.is_number_integer() && value.get<int64_t>() >= min && value.get<int64_t>() <= max;
}

std::string integer_needed(int64_t min, int64_t max) {
  return "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " is needed";
}

}  // namespace

std::optional<int64_t> ConfigJson::find_integer(const char* key, int64_t min, int64_t max) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!in_range(*value, min, max)) refuse(key, integer_needed(min, max));
  return value->get<int64_t>();
}

std::optional<double> ConfigJson::find_number(const char* key, double min, double max) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  // Written so that NaN fails.
  if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
    refuse(key, "a number from " + json(min).dump() + " to " + json(max).dump() + " is needed");
  }
  return value->get<double>();
}

std::optional<bool> ConfigJson::find_boolean(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) refuse(key, "true or false is needed");
  return value->get<bool>();
}

std::optional<std::string> ConfigJson::find_string(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) refuse(key, "a string is needed");
  return value->get<std::string>();
}

std::vector<int64_t> ConfigJson::integers(const char* key, int64_t min, int64_t max) const {
  const json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {*find_integer(key, min, max)};
  std::vector<int64_t> items;
  for (const json& item : *value) {
    if (!in_range(item, min, max)) {
      refuse(key, "each item must be " + integer_needed(min, max));
    }
    items.push_back(item.get<int64_t>());
  }
  return items;
}

std::vector<std::string> ConfigJson::strings(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) refuse(key, "a list of strings is needed");
  std::vector<std::string> items;
  for (const json& item : *value) {
    if (!item.is_string()) refuse(key, "a list of strings is needed");
    items.push_back(item.get<std::string>());
  }
  return items;
}

std::optional<ConfigJson> ConfigJson::find_object(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) refuse(key, "an object is needed");
  return ConfigJson(path_, prefix_ + key + ".", *value);
}

int32_t ConfigJson::integer(const char* key, int32_t min, int32_t max) const {
  const auto value = find_integer(key, min, max);
  if (!value) refuse(key, integer_needed(min, max));
  return static_cast<int32_t>(*value);
}

double ConfigJson::number(const char* key, double min, double max) const {
  const auto value = find_number(key, min, max);
  if (!value) refuse(key, "a number is needed");
  return *value;
}

}  // namespace trireme

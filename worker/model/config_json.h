// SPDX-License-Identifier: Apache-2.0
// JSON files of a checkpoint, and typed reading of config.json where every error names the file,
// the key, what was found and what is needed.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "topology/json_object.h"

namespace trireme {

// parse_json_object() of a file; throws kNotFound if it is absent, kInvalidArgument if it is over
// max_bytes.
nlohmann::json read_json_object(const std::string& path, uint64_t max_bytes);

class ConfigJson {
 public:
  // Reads the file.
  explicit ConfigJson(const std::string& path);

  const std::string& path() const { return path_; }

  // Present and not null.
  bool has(const char* key) const;
  // Present, be it null.
  bool says(const char* key) const { return object_.contains(key); }

  // nullopt: absent or null. Throws kInvalidArgument for another type or a value out of range.
  std::optional<int64_t> find_integer(const char* key, int64_t min, int64_t max) const;
  std::optional<double> find_number(const char* key, double min, double max) const;
  std::optional<bool> find_boolean(const char* key) const;
  std::optional<std::string> find_string(const char* key) const;
  // A list, or one integer as a list of one; empty if absent.
  std::vector<int64_t> integers(const char* key, int64_t min, int64_t max) const;
  // A list; empty if absent.
  std::vector<std::string> strings(const char* key) const;
  // The object at key as a config of its own, whose errors say "key.inner".
  std::optional<ConfigJson> find_object(const char* key) const;

  // The same, but absence is an error.
  int32_t integer(const char* key, int32_t min, int32_t max) const;
  double number(const char* key, double min, double max) const;

  // Throws kInvalidArgument: "PATH: KEY is VALUE; NEEDED".
  [[noreturn]] void refuse(const char* key, const std::string& needed) const;

 private:
  ConfigJson(const std::string& path, const std::string& prefix, nlohmann::json object);
  const nlohmann::json* find(const char* key) const;

  std::string path_;
  std::string prefix_;  // "rope_scaling." for an inner object
  nlohmann::json object_;
};

}  // namespace trireme

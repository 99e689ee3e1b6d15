// SPDX-License-Identifier: Apache-2.0
// Reads a JSON file that is not trusted: every field is checked for its type, and what is wrong is
// named with its place in the file.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace trireme {

// A value and where it stands, such as "tokenizer.json: model.merges[3]". A view: the file must
// live.
class JsonField {
 public:
  JsonField(const nlohmann::json& value, std::string place)
      : value_(&value), place_(std::move(place)) {}

  // Of an object; the field must be there.
  JsonField operator[](const std::string& key) const;
  // Of an object; nullopt where the field is absent or null.
  std::optional<JsonField> find(const std::string& key) const;
  // Of an array.
  size_t size() const;
  JsonField at(size_t index) const;
  // Of an object, for each member.
  const nlohmann::json& object() const;

  bool is_string() const { return value_->is_string(); }
  bool is_object() const { return value_->is_object(); }
  const std::string& text() const;
  int32_t id() const;  // an integer in [0, 2^31)
  bool boolean() const;
  bool boolean(const std::string& key, bool otherwise) const;

  const std::string& place() const { return place_; }
  // Throws kInvalidArgument: what is at this place is `what`.
  [[noreturn]] void fail(const std::string& what) const;

 private:
  const nlohmann::json* value_;
  std::string place_;
};

// Throws kNotFound, or kInvalidArgument where the file is too large, too deep or no JSON object.
nlohmann::json read_json(const std::string& file);

}  // namespace trireme

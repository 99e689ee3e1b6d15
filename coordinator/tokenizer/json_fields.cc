// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/json_fields.h"

#include "kernels/base/error.h"
#include "worker/model/config_json.h"

namespace trireme {
namespace {

constexpr uint64_t kFileBytesMax = 64ull << 20;  // the largest tokenizer.json known has 33 MiB

}  // namespace

void JsonField::fail(const std::string& what) const {
  throw Error(Code::kInvalidArgument,
              "cannot read " + place_ + ": " + what + "; copy the file of the checkpoint again");
}

const nlohmann::json& JsonField::object() const {
  if (!value_->is_object()) fail(std::string("found ") + value_->type_name() + ", needs an object");
  return *value_;
}

std::optional<JsonField> JsonField::find(const std::string& key) const {
  const auto found = object().find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return JsonField(*found, place_ + (place_.ends_with(": ") ? "" : ".") + key);
}

JsonField JsonField::operator[](const std::string& key) const {
  auto field = find(key);
  if (!field.has_value()) fail("the field \"" + key + "\" is missing");
  return *std::move(field);
}

size_t JsonField::size() const {
  if (!value_->is_array()) fail(std::string("found ") + value_->type_name() + ", needs an array");
  return value_->size();
}

JsonField JsonField::at(size_t index) const {
  if (index >= size()) {
    fail("it has " + std::to_string(size()) + " elements, needs " + std::to_string(index + 1));
  }
  return JsonField((*value_)[index], place_ + "[" + std::to_string(index) + "]");
}

const std::string& JsonField::text() const {
  if (!value_->is_string()) fail(std::string("found ") + value_->type_name() + ", needs a string");
  return value_->get_ref<const std::string&>();
}

int32_t JsonField::id() const {
  if (!value_->is_number_integer()) {
    fail(std::string("found ") + value_->type_name() + ", needs an integer");
  }
  const bool fits = value_->is_number_unsigned() && value_->get<uint64_t>() <= INT32_MAX;
  if (!fits) fail("found " + value_->dump() + ", an id is in [0, 2^31)");
  return value_->get<int32_t>();
}

bool JsonField::boolean() const {
  if (!value_->is_boolean())
    fail(std::string("found ") + value_->type_name() + ", needs a boolean");
  return value_->get<bool>();
}

bool JsonField::boolean(const std::string& key, bool otherwise) const {
  const auto field = find(key);
  return field.has_value() ? field->boolean() : otherwise;
}

nlohmann::json read_json(const std::string& file) { return read_json_object(file, kFileBytesMax); }

}  // namespace trireme

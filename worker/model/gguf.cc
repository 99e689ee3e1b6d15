// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/error.h"
#include "worker/model/quant.h"

namespace trireme {
namespace {

// Bounds on what a well-formed file holds; they keep what a hostile one can make us allocate small.
constexpr uint64_t kMaxHeaderBytes = 256ull << 20;
constexpr uint64_t kMaxArrayLength = 1ull << 24;
constexpr uint64_t kMaxNameBytes = 65535;
constexpr uint64_t kMaxAlignment = 1ull << 20;
constexpr uint64_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;

// Numbers of the value types of metadata.
enum class Type : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot read " + path + " as GGUF: " + what);
}

// Keys and tensor names come from the file: shown whole if they are short and printable.
std::string quote(std::string_view name) {
  std::string text(name.substr(0, 80));
  for (char& c : text) c = c >= 0x20 && c < 0x7F ? c : '?';
  return "'" + text + "'" + (name.size() > 80 ? "…" : "");
}

// Reads forward through the header; every read is checked against its end.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file)
      : file_(file), end_(std::min(file.size(), kMaxHeaderBytes)) {}

  uint64_t position() const { return position_; }

  // Throws unless `count` items of at least `item_bytes` each can still follow.
  void expect(uint64_t count, uint64_t item_bytes, const std::string& what) const {
    if (count > (end_ - position_) / item_bytes) {
      fail(file_.path(), what + " needs " + std::to_string(count) + " x " +
                             std::to_string(item_bytes) + " bytes at offset " +
                             std::to_string(position_) + ", but the header has " +
                             std::to_string(end_ - position_) + " bytes left (file of " +
                             std::to_string(file_.size()) + " bytes); is the download complete?");
    }
  }

  template <typename T>
  T number(const std::string& what) {
    expect(1, sizeof(T), what);
    T value;
    std::memcpy(&value, file_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string_view string(const std::string& what) {
    const auto length = number<uint64_t>(what);
    expect(length, 1, what);
    const auto* text = reinterpret_cast<const char*>(file_.data() + position_);
    position_ += length;
    return {text, length};
  }

 private:
  const MappedFile& file_;
  uint64_t end_;
  uint64_t position_ = 0;
};

// One integer of any width as int64.
int64_t read_integer(Cursor& cursor, const std::string& path, Type type, const std::string& what) {
  switch (type) {
    case Type::kUint8: return cursor.number<uint8_t>(what);
    case Type::kInt8: return cursor.number<int8_t>(what);
    case Type::kUint16: return cursor.number<uint16_t>(what);
    case Type::kInt16: return cursor.number<int16_t>(what);
    case Type::kUint32: return cursor.number<uint32_t>(what);
    case Type::kInt32: return cursor.number<int32_t>(what);
    case Type::kInt64: return cursor.number<int64_t>(what);
    case Type::kUint64: {
      const auto value = cursor.number<uint64_t>(what);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        fail(path, what + " is " + std::to_string(value) + "; at most 2^63 - 1 is read");
      }
      return static_cast<int64_t>(value);
    }
    default:
      fail(path, what + " has type " + std::to_string(static_cast<uint32_t>(type)) +
                     "; GGUF defines 0 to 12");
  }
}

bool read_boolean(Cursor& cursor, const std::string& path, const std::string& what) {
  const auto value = cursor.number<uint8_t>(what);
  if (value > 1)
    fail(path, what + " is the boolean " + std::to_string(value) + "; 0 or 1 is needed");
  return value == 1;
}

double read_float(Cursor& cursor, Type type, const std::string& what) {
  return type == Type::kFloat32 ? cursor.number<float>(what) : cursor.number<double>(what);
}

bool is_float(Type type) { return type == Type::kFloat32 || type == Type::kFloat64; }

// Bytes that an array's element takes at least.
uint64_t least_bytes(Type type) {
  switch (type) {
    case Type::kUint8:
    case Type::kInt8:
    case Type::kBool: return 1;
    case Type::kUint16:
    case Type::kInt16: return 2;
    case Type::kUint32:
    case Type::kInt32:
    case Type::kFloat32: return 4;
    default: return 8;
  }
}

// Value is GgufFile::Value.
template <typename Value>
Value read_array(Cursor& cursor, const std::string& path, const std::string& what) {
  const auto type = static_cast<Type>(cursor.number<uint32_t>(what));
  const auto length = cursor.number<uint64_t>(what);
  if (type == Type::kArray || type > Type::kFloat64) {
    fail(path, what + " is an array of type " + std::to_string(static_cast<uint32_t>(type)) +
                   "; numbers, booleans or strings are needed");
  }
  if (length > kMaxArrayLength) {
    fail(path, what + " has " + std::to_string(length) + " elements; at most " +
                   std::to_string(kMaxArrayLength) + " are read");
  }
  cursor.expect(length, least_bytes(type), what);
  if (type == Type::kString) {
    std::vector<std::string> values(length);
    for (std::string& value : values) value = cursor.string(what);
    return values;
  }
  if (is_float(type)) {
    std::vector<double> values(length);
    for (double& value : values) value = read_float(cursor, type, what);
    return values;
  }
  std::vector<int64_t> values(length);
  for (int64_t& value : values) {
    value = type == Type::kBool ? read_boolean(cursor, path, what)
                                : read_integer(cursor, path, type, what);
  }
  return values;
}

template <typename Value>
Value read_value(Cursor& cursor, const std::string& path, const std::string& what) {
  const auto type = static_cast<Type>(cursor.number<uint32_t>(what));
  if (type == Type::kString) return std::string(cursor.string(what));
  if (type == Type::kArray) return read_array<Value>(cursor, path, what);
  if (type == Type::kBool) return read_boolean(cursor, path, what);
  if (is_float(type)) return read_float(cursor, type, what);
  return read_integer(cursor, path, type, what);
}

// The shape, type and size of a tensor; the offset is still relative to the data section.
GgufTensor read_tensor(Cursor& cursor, const std::string& path, const std::string& what) {
  GgufTensor tensor;
  const auto dimensions = cursor.number<uint32_t>(what);
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    fail(path, what + " has " + std::to_string(dimensions) + " dimensions; 1 to 4 are needed");
  }
  uint64_t values = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = cursor.number<uint64_t>(what);
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        __builtin_mul_overflow(values, size, &values)) {
      fail(path, what + " has a dimension of " + std::to_string(size) + ": its size overflows");
    }
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  tensor.type = cursor.number<uint32_t>(what);
  tensor.offset = cursor.number<uint64_t>(what);
  const StoredType* type = find_ggml_type(tensor.type);
  if (type == nullptr) {
    fail(path, what + " has the element type " + std::to_string(tensor.type) +
                   ", which is not known here");
  }
  if (tensor.shape[0] % type->block_values != 0) {
    fail(path, what + " has rows of " + std::to_string(tensor.shape[0]) + " values; " + type->name +
                   " needs a multiple of " + std::to_string(type->block_values));
  }
  if (__builtin_mul_overflow(values / type->block_values, uint64_t(type->block_bytes),
                             &tensor.bytes)) {
    fail(path, what + " has " + std::to_string(values) + " values: its size overflows");
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  return tensor;
}

// Makes the offset absolute and checks that the data lies in the file.
void place_tensor(GgufTensor& tensor, uint64_t data_begin, uint64_t alignment,
                  const MappedFile& file, const std::string& what) {
  if (tensor.offset % alignment != 0) {
    fail(file.path(), what + " starts at " + std::to_string(tensor.offset) +
                          "; a multiple of general.alignment " + std::to_string(alignment) +
                          " is needed");
  }
  const uint64_t room = file.size() > data_begin ? file.size() - data_begin : 0;
  if (tensor.offset > room || tensor.bytes > room - tensor.offset) {
    fail(file.path(), what + " needs " + std::to_string(tensor.bytes) + " bytes at data offset " +
                          std::to_string(tensor.offset) + ", but the file has " +
                          std::to_string(room) +
                          " bytes of data: it is truncated or damaged; download it again");
  }
  tensor.offset += data_begin;
}

void check_overlaps(const std::unordered_map<std::string, GgufTensor>& tensors,
                    const std::string& path) {
  using Item = std::pair<const std::string, GgufTensor>;
  std::vector<const Item*> order;
  for (const Item& item : tensors) {
    if (item.second.bytes > 0) order.push_back(&item);
  }
  std::sort(order.begin(), order.end(),
            [](auto* a, auto* b) { return a->second.offset < b->second.offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->second.offset + order[i - 1]->second.bytes > order[i]->second.offset) {
      fail(path, "the tensors " + quote(order[i - 1]->first) + " and " + quote(order[i]->first) +
                     " overlap");
    }
  }
}

// What the header promises before the metadata.
struct Counts {
  uint64_t tensors = 0;
  uint64_t metadata = 0;
};

Counts read_preamble(Cursor& cursor, const std::string& path) {
  if (cursor.number<uint32_t>("the magic") != 0x46554747) {  // "GGUF"
    fail(path, "it does not begin with the letters GGUF");
  }
  const auto version = cursor.number<uint32_t>("the version");
  if (version != 2 && version != 3) {
    fail(path, "its version is " + std::to_string(version) +
                   "; 2 or 3, little-endian, is needed: convert the model again");
  }
  Counts counts;
  counts.tensors = cursor.number<uint64_t>("the tensor count");
  counts.metadata = cursor.number<uint64_t>("the metadata count");
  // An entry takes at least a name's length, a type and a value; a tensor a name, a shape, an
  // offset.
  cursor.expect(counts.metadata, 8 + 4 + 1, "the metadata");
  cursor.expect(counts.tensors, 8 + 4 + 8 + 4 + 8, "the tensor directory");
  return counts;
}

std::string read_name(Cursor& cursor, const std::string& path, const std::string& what) {
  const std::string_view name = cursor.string(what);
  if (name.empty() || name.size() > kMaxNameBytes) {
    fail(path, what + " has " + std::to_string(name.size()) + " bytes; 1 to 65535 are needed");
  }
  return std::string(name);
}

}  // namespace

GgufFile::GgufFile(const std::string& path) : file_(path) {
  Cursor cursor(file_);
  const Counts counts = read_preamble(cursor, path);
  for (uint64_t i = 0; i < counts.metadata; ++i) {
    std::string key = read_name(cursor, path, "the name of a metadata key");
    const std::string what = "metadata " + quote(key);
    if (!metadata_.emplace(std::move(key), read_value<Value>(cursor, path, what)).second) {
      fail(path, what + " occurs twice");
    }
  }
  const int64_t alignment = integer("general.alignment").value_or(kDefaultAlignment);
  if (alignment < 1 || alignment > int64_t(kMaxAlignment) ||
      !std::has_single_bit(uint64_t(alignment))) {
    fail(path, "general.alignment is " + std::to_string(alignment) + "; a power of two up to " +
                   std::to_string(kMaxAlignment) + " is needed");
  }
  for (uint64_t i = 0; i < counts.tensors; ++i) {
    std::string name = read_name(cursor, path, "the name of a tensor");
    const std::string what = "tensor " + quote(name);
    if (!tensors_.emplace(std::move(name), read_tensor(cursor, path, what)).second) {
      fail(path, what + " occurs twice");
    }
  }
  const uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  for (auto& [name, tensor] : tensors_) {
    place_tensor(tensor, data_begin, alignment, file_, "tensor " + quote(name));
  }
  check_overlaps(tensors_, path);
}

const GgufFile::Value* GgufFile::find(std::string_view key) const {
  const auto entry = metadata_.find(std::string(key));
  return entry == metadata_.end() ? nullptr : &entry->second;
}

bool GgufFile::is_array(std::string_view key) const {
  const Value* value = find(key);
  return value != nullptr && (std::holds_alternative<std::vector<std::string>>(*value) ||
                              std::holds_alternative<std::vector<int64_t>>(*value) ||
                              std::holds_alternative<std::vector<double>>(*value));
}

template <typename T>
std::optional<T> GgufFile::get(std::string_view key, const char* needed) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const T* typed = std::get_if<T>(value)) return *typed;
  fail(file_.path(), "metadata " + quote(key) + " has another type; " + needed + " is needed");
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  return get<int64_t>(key, "an integer");
}
std::optional<double> GgufFile::number(std::string_view key) const {
  return get<double>(key, "a floating-point number");
}
std::optional<bool> GgufFile::boolean(std::string_view key) const {
  return get<bool>(key, "a boolean");
}
std::optional<std::string> GgufFile::string(std::string_view key) const {
  return get<std::string>(key, "a string");
}
std::optional<std::vector<std::string>> GgufFile::strings(std::string_view key) const {
  return get<std::vector<std::string>>(key, "an array of strings");
}
std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  return get<std::vector<int64_t>>(key, "an array of integers");
}
std::optional<std::vector<double>> GgufFile::numbers(std::string_view key) const {
  return get<std::vector<double>>(key, "an array of floating-point numbers");
}

}  // namespace trireme

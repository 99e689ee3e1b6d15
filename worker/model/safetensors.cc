// SPDX-License-Identifier: Apache-2.0
#include "worker/model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "worker/model/config_json.h"
#include "worker/model/quant.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr uint64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxDimensions = 8;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot read " + path + " as safetensors: " + what);
}

std::string quote(const std::string& name) {
  return "'" + name.substr(0, 80) + "'" + (name.size() > 80 ? "…" : "");
}

std::string_view read_header(const MappedFile& file) {
  if (file.size() < kLengthBytes) {
    fail(file.path(), "it has " + std::to_string(file.size()) +
                          " bytes; at least 8 are needed: download it again");
  }
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > kMaxHeaderBytes) {
    fail(file.path(), "its header has " + std::to_string(length) + " bytes; at most " +
                          std::to_string(kMaxHeaderBytes) + " are allowed");
  }
  if (length > file.size() - kLengthBytes) {
    fail(file.path(), "its header needs " + std::to_string(length) + " bytes, but the file has " +
                          std::to_string(file.size() - kLengthBytes) +
                          " after its length: it is truncated; download it again");
  }
  return {reinterpret_cast<const char*>(file.data()) + kLengthBytes, length};
}

// A list of non-negative integers; anything else fails.
std::vector<int64_t> read_sizes(const json& tensor, const char* key, size_t max_items,
                                const std::string& path, const std::string& what) {
  const auto list = tensor.find(key);
  bool good = list != tensor.end() && list->is_array() && list->size() <= max_items;
  std::vector<int64_t> sizes;
  for (size_t i = 0; good && i < list->size(); ++i) {
    const json& item = (*list)[i];
    good = item.is_number_unsigned() && item.get<uint64_t>() <= uint64_t(INT64_MAX);
    if (good) sizes.push_back(item.get<int64_t>());
  }
  if (!good) {
    fail(path, what + " has no " + key + " that is a list of at most " + std::to_string(max_items) +
                   " sizes");
  }
  return sizes;
}

// The stored size must be what type and shape say, for the types that we know.
void check_size(const SafetensorsTensor& tensor, const std::string& path, const std::string& what) {
  const StoredType* type = find_stored_type(tensor.dtype);
  if (type == nullptr) return;  // refused by name if it is ever read
  uint64_t bytes = static_cast<uint64_t>(type->block_bytes);
  for (int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) {
      fail(path, what + " has a dimension of " + std::to_string(size) + ": its size overflows");
    }
  }
  if (bytes != tensor.bytes) {
    fail(path, what + " has " + std::to_string(tensor.bytes) + " bytes, but its type " +
                   tensor.dtype + " and shape need " + std::to_string(bytes));
  }
}

SafetensorsTensor read_tensor(const json& value, uint64_t data_begin, const MappedFile& file,
                              const std::string& what) {
  const std::string& path = file.path();
  if (!value.is_object()) fail(path, what + " is no object");
  SafetensorsTensor tensor;
  const auto dtype = value.find("dtype");
  if (dtype == value.end() || !dtype->is_string()) fail(path, what + " has no dtype");
  tensor.dtype = dtype->get<std::string>().substr(0, 32);
  tensor.shape = read_sizes(value, "shape", kMaxDimensions, path, what);
  const std::vector<int64_t> range = read_sizes(value, "data_offsets", 2, path, what);
  if (range.size() != 2 || range[0] > range[1]) {
    fail(path, what + " has data_offsets that are no [begin, end] in order");
  }
  const uint64_t room = file.size() - data_begin;
  if (static_cast<uint64_t>(range[1]) > room) {
    fail(path, what + " ends at byte " + std::to_string(range[1]) +
                   " of the data, but the file has " + std::to_string(room) +
                   " bytes of data: it is truncated; download it again");
  }
  tensor.offset = data_begin + static_cast<uint64_t>(range[0]);
  tensor.bytes = static_cast<uint64_t>(range[1] - range[0]);
  check_size(tensor, path, what);
  return tensor;
}

void check_overlaps(const std::unordered_map<std::string, SafetensorsTensor>& tensors,
                    const std::string& path) {
  std::vector<std::pair<uint64_t, const std::string*>> order;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.bytes > 0) order.emplace_back(tensor.offset, &name);
  }
  std::sort(order.begin(), order.end());
  for (size_t i = 1; i < order.size(); ++i) {
    const std::string& before = *order[i - 1].second;
    if (order[i - 1].first + tensors.at(before).bytes > order[i].first) {
      fail(path, "the tensors " + quote(before) + " and " + quote(*order[i].second) + " overlap");
    }
  }
}

// No separators, no "..": the index must not lead out of its directory.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  const std::string_view header = read_header(file_);
  const json root = parse_json_object(header, "cannot read the header of " + path);
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") continue;
    tensors_.emplace(
        name, read_tensor(value, kLengthBytes + header.size(), file_, "tensor " + quote(name)));
  }
  check_overlaps(tensors_, path);
}

std::unordered_map<std::string, std::string> read_safetensors_index(const std::string& path) {
  const json root = read_json_object(path, kMaxIndexBytes);
  const auto map = root.find("weight_map");
  if (map == root.end() || !map->is_object() || map->empty()) {
    fail(path, "it has no weight_map from tensor names to file names");
  }
  std::unordered_map<std::string, std::string> files;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string() || !is_plain_name(file.get<std::string>())) {
      fail(path, "weight_map sends " + quote(name) +
                     " to something that is no plain file name in the same directory");
    }
    files.emplace(name, file.get<std::string>());
  }
  return files;
}

}  // namespace trireme

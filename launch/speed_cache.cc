// SPDX-License-Identifier: Apache-2.0
#include "launch/speed_cache.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "coordinator/private_file.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace trireme {
namespace {

constexpr int64_t kHour = 3600, kDay = 24 * kHour;
constexpr int64_t kMostAge = 7 * kDay;
constexpr size_t kMostBytes = size_t{8} << 20;
constexpr int kMostNodes = 4096;

// Empty: there is none, or none that can be used.
SpeedFile read(const std::string& path) {
  SpeedFile file;
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (path.empty() || error || !std::filesystem::is_regular_file(path, error)) return file;
  if (bytes <= kMostBytes) {
    std::ifstream stream(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    if (google::protobuf::util::JsonStringToMessage(text, &file, options).ok()) return file;
  }
  log_warn("cannot use the speeds in " + path +
           ": it is not as this program writes it; measuring again");
  return {};
}

}  // namespace

SpeedCache::SpeedCache(std::string path, int64_t now)
    : path_(std::move(path)), now_(now), file_(read(path_)) {}

const NodeSpeeds* SpeedCache::find(const std::string& key) const {
  for (const NodeSpeeds& node : file_.nodes()) {
    const int64_t at = node.measured_at_unix_s();
    if (node.key() == key && at <= now_ && at > now_ - kMostAge) return &node;
  }
  return nullptr;
}

void SpeedCache::keep(const NodeSpeeds& node) {
  auto& nodes = *file_.mutable_nodes();
  nodes.erase(std::remove_if(nodes.begin(), nodes.end(),
                             [&](const NodeSpeeds& other) {
                               const int64_t at = other.measured_at_unix_s();
                               return other.key() == node.key() || at > now_ ||
                                      at <= now_ - kMostAge;
                             }),
              nodes.end());
  if (nodes.size() >= kMostNodes) nodes.erase(nodes.begin());  // the oldest
  *nodes.Add() = node;
}

void SpeedCache::save() const {
  if (path_.empty()) return;
  try {
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    std::string text;
    if (google::protobuf::util::MessageToJsonString(file_, &text, options).ok()) {
      write_private_file(path_, text + "\n", "the cache of speeds");
    }
  } catch (const std::filesystem::filesystem_error& error) {
    log_info(std::string("speeds are not kept: ") + error.what());
  } catch (const Error& error) {
    log_info(std::string("speeds are not kept: ") + error.what());
  }
}

std::string age_text(int64_t seconds) {
  constexpr int64_t kMinute = 60;
  const auto text = [](int64_t count, const char* unit) {
    return std::to_string(count) + " " + unit + (count == 1 ? " ago" : "s ago");
  };
  if (seconds < kMinute) return "just now";
  if (seconds < kHour) return text(seconds / kMinute, "minute");
  if (seconds < kDay) return text(seconds / kHour, "hour");
  return text(seconds / kDay, "day");
}

}  // namespace trireme

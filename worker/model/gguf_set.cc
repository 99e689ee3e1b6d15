// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gguf_set.h"

#include <cstdio>
#include <filesystem>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr int64_t kMaxParts = 99999;  // five digits in the name

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot read " + path + " as part of a model: " + what);
}

// How the name of part `number`, from 1, ends.
std::string ending(int64_t number, int64_t count) {
  char text[64];
  std::snprintf(text, sizeof(text), "-%05lld-of-%05lld.gguf", static_cast<long long>(number),
                static_cast<long long>(count));
  return text;
}

int64_t count_of(const GgufFile& file) { return file.integer("split.count").value_or(1); }

}  // namespace

GgufSet::GgufSet(const std::string& path) {
  files_.emplace_back(path);
  const int64_t count = count_of(files_.front());
  if (count < 0 || count > kMaxParts) {
    fail(path, "split.count is " + std::to_string(count) + "; 0 to " + std::to_string(kMaxParts) +
                   " is needed");
  }
  if (count > 1) add_parts(count);
  index_tensors();
}

void GgufSet::add_parts(int64_t count) {
  const std::string first = files_.front().file().path();
  const std::string end = ending(1, count);
  if (!first.ends_with(end)) {
    fail(first, "it is one of " + std::to_string(count) +
                    "; the first is needed, whose name ends in " + end);
  }
  const std::string stem = first.substr(0, first.size() - end.size());
  for (int64_t number = 1; number <= count; ++number) {
    const std::string path = stem + ending(number, count);
    if (!name_exists(path)) {
      throw Error(Code::kNotFound, "cannot open the model " + first + ": its part " + path +
                                       " is missing; download all " + std::to_string(count));
    }
    if (number > 1) files_.emplace_back(path);
    const GgufFile& file = files_.back();
    const int64_t index = file.integer("split.no").value_or(-1);
    if (index == number - 1 && count_of(file) == count) continue;
    fail(path, "split.no is " + std::to_string(index) + " and split.count " +
                   std::to_string(count_of(file)) + "; " + std::to_string(number - 1) + " and " +
                   std::to_string(count) + " are needed: it is of another model");
  }
}

void GgufSet::index_tensors() {
  for (const GgufFile& file : files_) {
    for (const auto& [name, tensor] : file.tensors()) {
      const auto [entry, added] = tensors_.try_emplace(name, Place{&tensor, &file});
      if (added) continue;
      fail(file.file().path(), "the tensor " + name.substr(0, 80) + " is in " +
                                   entry->second.file->file().path() + " too");
    }
  }
  const auto needed = files_.front().integer("split.tensors.count");
  if (files_.size() > 1 && needed && *needed != static_cast<int64_t>(tensors_.size())) {
    fail(files_.front().file().path(),
         "split.tensors.count is " + std::to_string(*needed) + ", but the parts hold " +
             std::to_string(tensors_.size()) + " tensors: download them again");
  }
}

GgufSet::Place GgufSet::find(const std::string& name) const {
  const auto entry = tensors_.find(name);
  return entry == tensors_.end() ? Place{} : entry->second;
}

}  // namespace trireme

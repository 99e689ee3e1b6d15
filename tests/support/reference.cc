// SPDX-License-Identifier: Apache-2.0
#include "tests/support/reference.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

namespace trireme {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kFolders[] = {"/../shared/data/models/", "/tests/data/"};

// Where a build runs on another machine, its environment says where the sources are there.
std::string source_folder() {
  const char* const given = std::getenv("TRIREME_SOURCE_DIR");
  return given != nullptr ? given : TRIREME_SOURCE_DIR;
}

// fp32 tensors of a safetensors file, by name. The files are ours: what is wrong with one is a bug.
class ReferenceTensors {
 public:
  explicit ReferenceTensors(const std::string& path) : file_(path, std::ios::binary) {
    if (!file_) return;
    uint64_t length = 0;
    file_.read(reinterpret_cast<char*>(&length), sizeof length);
    std::string header(length, '\0');
    file_.read(header.data(), static_cast<std::streamsize>(length));
    header_ = json::parse(header);
    data_ = 8 + length;
  }

  std::vector<float> get(const std::string& name) {
    if (!header_.contains(name)) return {};
    const auto& offsets = header_[name]["data_offsets"];
    const auto begin = offsets[0].get<uint64_t>();
    std::vector<float> values((offsets[1].get<uint64_t>() - begin) / sizeof(float));
    file_.seekg(static_cast<std::streamoff>(data_ + begin));
    file_.read(reinterpret_cast<char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    return values;
  }

 private:
  std::ifstream file_;
  json header_ = json::object();
  uint64_t data_ = 0;
};

template <typename T>
std::vector<T> array_of(const json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (object.contains(key)) return object[key].get<std::vector<T>>();
  }
  return {};
}

// The folder whose ref.json is that of `name`.
std::optional<std::string> find_reference(std::string name) {
  while (!name.empty()) {
    const auto folder = find_checkpoint(name);
    if (folder && fs::exists(*folder + "/ref.json")) return folder;
    const size_t dash = name.rfind('-');
    name.resize(dash == std::string::npos ? 0 : dash);
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> find_checkpoint(const std::string& name) {
  for (const char* folder : kFolders) {
    const std::string path = source_folder() + folder + name;
    if (fs::exists(path + "/config.json")) return path;
  }
  return std::nullopt;
}

std::vector<std::string> golden_checkpoints() {
  std::set<std::string> names = {"stories260k", "tiny-chatglm3-fp32"};
  for (const char* folder : kFolders) {
    const std::string path = source_folder() + folder;
    if (!fs::exists(path)) continue;
    for (const auto& entry : fs::directory_iterator(path)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("tiny-") && find_checkpoint(name) && find_reference(name)) {
        names.insert(name);
      }
    }
  }
  return {names.begin(), names.end()};
}

std::vector<ReferencePrompt> read_reference(const std::string& checkpoint_name) {
  const auto folder = find_reference(checkpoint_name);
  if (!folder) throw std::runtime_error("no reference for " + checkpoint_name);
  std::ifstream file(*folder + "/ref.json");
  const json reference = json::parse(file);
  ReferenceTensors tensors(*folder + "/ref.safetensors");
  std::vector<ReferencePrompt> prompts;
  for (size_t index = 0; index < reference["prompts"].size(); ++index) {
    const json& source = reference["prompts"][index];
    const std::string name = "prompt" + std::to_string(index);
    ReferencePrompt prompt;
    prompt.prompt = array_of<int32_t>(source, {"prompt_ids"});
    // smollm2-135m has one reference a dtype.
    const json& outputs = source.contains("fp32") ? source["fp32"] : source;
    prompt.greedy = array_of<int32_t>(outputs, {"greedy32", "greedy", "greedy32_no_stop"});
    prompt.margins = array_of<double>(outputs, {"greedy_margin", "margin_top1_top2"});
    if (prompt.margins.empty() && outputs.contains("min_margin")) {
      prompt.margins.assign(prompt.greedy.size(), outputs["min_margin"].get<double>());
    }
    prompt.top_ids =
        array_of<int32_t>(outputs, {"last_logits_top20_ids", "last_top20_ids", "top20_ids"});
    prompt.top_logits =
        array_of<float>(outputs, {"last_logits_top20", "last_top20", "top20", "top20_logits"});
    prompt.all_logits = tensors.get(name + ".logits");
    prompt.last_logits = array_of<float>(outputs, {"logits"});
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

}  // namespace trireme

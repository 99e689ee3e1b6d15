// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/vocab_merges.h"

#include <algorithm>

#include "coordinator/tokenizer/bpe_vocabulary.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "kernels/base/error.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

constexpr uint64_t kMergesBytesMax = 64ull << 20;  // the largest known has 2 MiB

void read_merges(const std::string& file, BpeModel& model) {
  const MappedFile bytes(file);
  if (bytes.size() > kMergesBytesMax) {
    throw Error(Code::kInvalidArgument, "cannot read " + file + ": it has " +
                                            std::to_string(bytes.size()) + " bytes, at most " +
                                            std::to_string(kMergesBytesMax) + " are taken");
  }
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t length = std::min(text.find('\n'), text.size());
    const std::string line(text.substr(0, length));
    text.remove_prefix(std::min(length + 1, text.size()));
    if (line.starts_with("#version") || line.empty()) continue;
    if (!add_merge(line, model)) {
      throw Error(Code::kInvalidArgument,
                  "cannot read " + file + ": line " + std::to_string(number) + " is \"" +
                      line.substr(0, 80) + "\", a merge has two parts with one space between; " +
                      "copy the file of the checkpoint again");
    }
  }
}

// "Fast" is the same class over another library.
bool is_class(std::string name, const char* wanted) {
  if (name.ends_with("Fast")) name.resize(name.size() - 4);
  return name == wanted;
}

}  // namespace

std::unique_ptr<Tokenizer> load_vocab_merges(const std::string& folder, const std::string& family) {
  const TokenizerConfig config = read_tokenizer_config(folder);
  const std::string& name = config.tokenizer_class;
  const bool by_family = name.empty() && (family == "qwen2" || family == "qwen3");
  BpeModel model(folder + "/vocab.json");
  if (config.add_prefix_space) model.pre_tokenizer.add_space_prefix();
  if (by_family || is_class(name, "Qwen2Tokenizer")) {
    model.normalizer.add_nfc();
    model.pre_tokenizer.add_split(kOneDigitPattern);
  } else if (is_class(name, "GPT2Tokenizer")) {
    model.pre_tokenizer.add_split(kGpt2Pattern);
  } else {
    throw Error(Code::kUnimplemented,
                "cannot load the tokenizer of " + folder +
                    ": vocab.json and merges.txt do not say how a text is cut, and the class \"" +
                    name + "\" of the family " + family +
                    " is not known, only Qwen2Tokenizer and GPT2Tokenizer are; copy the "
                    "checkpoint's tokenizer.json beside them");
  }
  const nlohmann::json json = read_json(model.file);
  read_vocabulary(JsonField(json, model.file + ": "), model);
  read_merges(folder + "/merges.txt", model);
  add_config_tokens(config, model);
  return make_bpe(std::move(model));
}

}  // namespace trireme

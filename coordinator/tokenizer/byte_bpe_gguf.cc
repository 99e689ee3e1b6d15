// SPDX-License-Identifier: Apache-2.0
// The tokenizer in the metadata of a GGUF file, which names its pre-tokenizer instead of spelling
// it.
#include "coordinator/tokenizer/bpe_vocabulary.h"
#include "coordinator/tokenizer/sentencepiece.h"
#include "kernels/base/error.h"
#include "worker/model/gguf.h"

namespace trireme {
namespace {

// Kinds of token_type, by GGUF's numbers.
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;

// Mistral's tekken cuts words before a capital letter.
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Pre {
  const char* name;  // tokenizer.ggml.pre
  std::vector<const char*> patterns;
  bool nfc = false;
  bool ignore_merges = false;
};

const Pre& find_pre(const std::string& file, const std::string& name) {
  static const std::vector<Pre> known = {
      {"smollm", {"\\p{N}", kGpt2Pattern}},
      {"gpt-2", {kGpt2Pattern}},
      {"default", {kGpt2Pattern}},
      {"llama-bpe", {kThreeDigitsPattern}, false, true},
      {"llama3", {kThreeDigitsPattern}, false, true},
      {"llama-v3", {kThreeDigitsPattern}, false, true},
      {"falcon3", {kThreeDigitsPattern}, false, true},
      {"tekken", {kTekken}, false, true},
      {"qwen2", {kOneDigitPattern}, true},
      {"deepseek-r1-qwen", {kOneDigitPattern}, true},
      {"deepseek-coder",
       {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        "\\p{N}"}},
      {"chatglm-bpe", {kThreeDigitsPattern}},
      {"glm4", {kThreeDigitsPattern}},
  };
  std::string names;
  for (const Pre& pre : known) {
    if (name == pre.name) return pre;
    names += std::string(names.empty() ? "" : ", ") + pre.name;
  }
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file +
                                          ": tokenizer.ggml.pre is \"" + name + "\", known are " +
                                          names + "; use the checkpoint's HF directory");
}

template <typename T>
T need(std::optional<T> value, const std::string& file, const char* key) {
  if (value.has_value()) return *std::move(value);
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file + ": the key " + key +
                                          " is missing; convert the model again");
}

void read_merges(const std::vector<std::string>& merges, BpeModel& model) {
  for (const std::string& text : merges) {
    if (add_merge(text, model)) continue;
    throw Error(Code::kInvalidArgument,
                "cannot load the tokenizer of " + model.file + ": the merge \"" + text +
                    "\" needs two parts with one space between; convert the model again");
  }
}

}  // namespace

std::unique_ptr<Tokenizer> load_gguf_tokenizer(const std::string& file) {
  const GgufFile gguf(file);
  const std::string kind = need(gguf.string("tokenizer.ggml.model"), file, "tokenizer.ggml.model");
  if (kind == "llama") return load_gguf_sentencepiece(gguf);
  if (kind != "gpt2") {
    throw Error(Code::kUnimplemented,
                "cannot load the tokenizer of " + file + ": tokenizer.ggml.model is \"" + kind +
                    "\", only byte-level BPE (\"gpt2\") and sentencepiece BPE (\"llama\") are read "
                    "from GGUF; use the checkpoint's HF directory");
  }
  BpeModel model(file);
  const Pre& pre =
      find_pre(file, need(gguf.string("tokenizer.ggml.pre"), file, "tokenizer.ggml.pre"));
  for (const char* pattern : pre.patterns) model.pre_tokenizer.add_split(pattern);
  if (pre.nfc) model.normalizer.add_nfc();
  model.ignore_merges = pre.ignore_merges;
  model.tokens = need(gguf.strings("tokenizer.ggml.tokens"), file, "tokenizer.ggml.tokens");
  const auto types =
      need(gguf.integers("tokenizer.ggml.token_type"), file, "tokenizer.ggml.token_type");
  if (types.size() != model.tokens.size()) {
    throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file + ": it has " +
                                            std::to_string(model.tokens.size()) + " tokens and " +
                                            std::to_string(types.size()) +
                                            " token types; convert the model again");
  }
  for (size_t id = 0; id < types.size(); ++id) {
    if (types[id] != kControl && types[id] != kUserDefined) continue;
    model.added.push_back(
        {static_cast<int32_t>(id), model.tokens[id], types[id] == kControl, false});
  }
  read_merges(need(gguf.strings("tokenizer.ggml.merges"), file, "tokenizer.ggml.merges"), model);
  return make_bpe(std::move(model));
}

}  // namespace trireme

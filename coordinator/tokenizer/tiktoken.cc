// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/tiktoken.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "kernels/base/error.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

constexpr uint64_t kFileBytesMax = 16ull << 20;  // the largest known has 4 MiB
constexpr size_t kTokenBytesMax = 512;           // the longest known has 128
constexpr size_t kLineBytesMax = 4 * (kTokenBytesMax / 3 + 1) + 12;

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file + ": " + what +
                                          "; copy the file of the checkpoint again");
}

// A number for each letter of base64, -1 for others.
constexpr std::array<int8_t, 256> make_base64() {
  std::array<int8_t, 256> values{};
  for (auto& value : values) value = -1;
  constexpr std::string_view kLetters =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kLetters.size(); ++i) {
    values[static_cast<uint8_t>(kLetters[i])] = static_cast<int8_t>(i);
  }
  return values;
}

// The bytes of a padded base64 text, in the byte alphabet; false where it is none.
bool decode_base64(std::string_view text, std::string& letters) {
  static constexpr std::array<int8_t, 256> kValues = make_base64();
  if (text.empty() || text.size() % 4 != 0) return false;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  uint32_t bits = 0;
  int held = 0;
  for (const char c : text.substr(0, text.size() - padding)) {
    const int8_t value = kValues[static_cast<uint8_t>(c)];
    if (value < 0) return false;
    bits = (bits << 6 | static_cast<uint32_t>(value)) & 0xFFFF;
    held += 6;
    if (held < 8) continue;
    held -= 8;
    letters += byte_character(static_cast<uint8_t>(bits >> held));
  }
  return (bits & ((1u << held) - 1)) == 0;
}

void read_line(const std::string& file, size_t number, std::string_view line, BpeModel& model) {
  const std::string where = "line " + std::to_string(number + 1);
  const size_t space = line.find(' ');
  std::string letters;
  if (line.size() > kLineBytesMax || space == line.npos ||
      !decode_base64(line.substr(0, space), letters)) {
    fail(file, where + " is no token in base64 with a rank behind it, as tiktoken writes them");
  }
  size_t rank = 0;
  const char* end = line.data() + line.size();
  const auto [at, error] = std::from_chars(line.data() + space + 1, end, rank);
  if (error != std::errc() || at != end || rank >= model.tokens.size()) {
    fail(file, where + " has the rank \"" + std::string(line.substr(space + 1)) + "\", one below " +
                   std::to_string(model.tokens.size()) + ", the number of lines, is needed");
  }
  if (!model.tokens[rank].empty()) fail(file, where + " has a rank that another line has too");
  model.tokens[rank] = std::move(letters);
}

void read_ranks(const std::string& file, BpeModel& model) {
  const MappedFile bytes(file);
  if (bytes.size() == 0 || bytes.size() > kFileBytesMax) {
    fail(file, "it has " + std::to_string(bytes.size()) + " bytes, a list of tokens has 1 to " +
                   std::to_string(kFileBytesMax));
  }
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.ends_with('\n')) text.remove_suffix(1);
  model.tokens.resize(static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) + 1);
  for (size_t number = 0; number < model.tokens.size(); ++number) {
    const size_t length = std::min(text.find('\n'), text.size());
    read_line(file, number, text.substr(0, length), model);
    text.remove_prefix(std::min(length + 1, text.size()));
  }
}

std::vector<std::string> glm4_specials() {
  return {"<|endoftext|>",
          "[MASK]",
          "[gMASK]",
          "[sMASK]",
          "<sop>",
          "<eop>",
          "<|system|>",
          "<|user|>",
          "<|assistant|>",
          "<|observation|>",
          "<|begin_of_image|>",
          "<|end_of_image|>",
          "<|begin_of_video|>",
          "<|end_of_video|>"};
}

// Llama 3.1's names; 3.0 has reserved ones in place of three.
std::vector<std::string> llama3_specials() {
  const auto reserved = [](int i) {
    return "<|reserved_special_token_" + std::to_string(i) + "|>";
  };
  std::vector<std::string> texts = {"<|begin_of_text|>",
                                    "<|end_of_text|>",
                                    reserved(0),
                                    reserved(1),
                                    "<|finetune_right_pad_id|>",
                                    reserved(2),
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<|eom_id|>",
                                    "<|eot_id|>",
                                    "<|python_tag|>"};
  for (int i = 3; texts.size() < 256; ++i) texts.push_back(reserved(i));
  return texts;
}

std::vector<std::string> qwen_specials() {
  std::vector<std::string> texts = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int i = 0; i < 205; ++i) texts.push_back("<|extra_" + std::to_string(i) + "|>");
  return texts;
}

struct Kind {
  std::string_view tokenizer_class;   // empty: its checkpoints name none of their own
  std::vector<const char*> families;  // where the class is not known
  size_t ranks;                       // of the published list, needed where the family decides
  const char* pattern;
  bool nfc;
  std::vector<std::string> (*specials)();  // from the number of ranks on, unless a file says
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {
      {"ChatGLM4Tokenizer",
       {"chatglm", "glm", "glm4"},
       151329,
       kThreeDigitsPattern,
       false,
       glm4_specials},
      {"QWenTokenizer", {"qwen"}, 151643, kOneDigitPattern, true, qwen_specials},
      {"", {"llama"}, 128000, kThreeDigitsPattern, false, llama3_specials},
  };
  return all;
}

const Kind& find_kind(const std::string& file, const TokenizerConfig& config,
                      const std::string& family, size_t ranks) {
  std::string known;
  for (const Kind& kind : kinds()) {
    const bool named = !kind.tokenizer_class.empty();
    if (named && config.tokenizer_class == kind.tokenizer_class) return kind;
    for (const char* name : kind.families) {
      if (family == name && ranks == kind.ranks) return kind;
      known +=
          std::string(known.empty() ? "" : ", ") + name + " with " + std::to_string(kind.ranks);
    }
  }
  throw Error(Code::kUnimplemented,
              "cannot load the tokenizer of " + file + ": its list of " + std::to_string(ranks) +
                  " tokens does not say by which pattern a text is cut, and for the class \"" +
                  config.tokenizer_class + "\" and the family " + family +
                  " none is known; known are " + known +
                  "; copy the checkpoint's tokenizer.json beside it");
}

}  // namespace

std::unique_ptr<Tokenizer> load_tiktoken(const std::string& file, const std::string& folder,
                                         const std::string& family) {
  const TokenizerConfig config = read_tokenizer_config(folder);
  BpeModel model(file);
  read_ranks(file, model);
  const size_t ranks = model.tokens.size();
  const Kind& kind = find_kind(file, config, family, ranks);
  model.merges_by_id = true;
  model.ignore_merges = true;
  model.pre_tokenizer.add_split(kind.pattern, Cut::kMatchesKept);
  if (kind.nfc) model.normalizer.add_nfc();
  add_config_tokens(config, model);
  if (!config.added.empty()) return make_bpe(std::move(model));
  for (const std::string& text : kind.specials()) {
    model.added.push_back({static_cast<int32_t>(ranks + model.added.size()), text, true, false});
  }
  return make_bpe(std::move(model));
}

}  // namespace trireme

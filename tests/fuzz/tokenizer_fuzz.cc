// SPDX-License-Identifier: Apache-2.0
// Tokenizers: tokenizer.json with tokenizer_config.json, sentencepiece models, regular expressions.
#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/regex.h"
#include "coordinator/tokenizer/sentencepiece_check.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "coordinator/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/sentencepiece_process.h"

namespace trireme::fuzz {
namespace {

void check_encoding(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  if (!accepts([&] { ids = tokenizer.encode(text); })) return;
  for (const int32_t id : ids) {
    CHECK(id >= 0 && id < tokenizer.size(), "an id of the tokenizer");
    CHECK(!tokenizer.is_special(id), "no text becomes a special token");
  }
  CHECK(!find_broken_utf8(tokenizer.decode(ids)).has_value(), "a decoded text is UTF-8");
}

// The tokenizer of a folder, with some texts and a conversation.
void use_folder(const InputFolder& folder, const std::string& family, std::string_view text) {
  static const std::string kText =
      "Hello, 12345 worlds!\r\n  \xE4\xBD\xA0\xE5\xA5\xBD\t e\xCC\x81 <|user|>'ll";
  std::unique_ptr<Tokenizer> tokenizer;
  if (!accepts([&] { tokenizer = load_tokenizer(folder.path(), family); })) return;
  check_encoding(*tokenizer, kText);
  check_encoding(*tokenizer, text);
  (void)accepts([&] {
    const auto chat = make_chat_format(folder.path(), family, -1, *tokenizer);
    const std::vector<ChatTurn> turns = {{"system", "Be brief."}, {"user", kText}};
    for (const int32_t id : chat->render(turns)) {
      CHECK(id >= 0 && id < tokenizer->size(), "an id of the tokenizer");
    }
  });
}

}  // namespace

// The file, then tokenizer_config.json, then a text.
void fuzz_tokenizer_json(std::string_view input) {
  static InputFolder folder({"tokenizer.json", "tokenizer_config.json"});
  const auto [json, rest] = cut(input);
  const auto [config, text] = cut(rest);
  folder.set(0, json);
  folder.set(1, config.empty() ? "{}" : config);
  use_folder(folder, "qwen2", text);
}

void fuzz_tiktoken(std::string_view input) {
  static InputFolder folder({"tokenizer_config.json", "tokenizer.model"});
  const auto [config, list] = cut(input);
  if (list.starts_with('\n')) return;  // of sentencepiece, by its first byte
  folder.set(0, config);
  folder.set(1, list);
  use_folder(folder, "chatglm", "");
}

// tokenizer_config.json, vocab.json, then merges.txt.
void fuzz_vocab_merges(std::string_view input) {
  static InputFolder folder({"tokenizer_config.json", "vocab.json", "merges.txt"});
  const auto [config, rest] = cut(input);
  const auto [vocabulary, merges] = cut(rest);
  folder.set(0, config);
  folder.set(1, vocabulary);
  folder.set(2, merges);
  use_folder(folder, "qwen2", "");
}

// Our own check sees the file first; what it lets pass, sentencepiece must survive.
void fuzz_sentencepiece(std::string_view input) {
  if (!accepts([&] { check_sentencepiece_model(input, "tokenizer.model"); })) return;
  SentencePieceProcess::instance().load(ModelKind::kPieces, input);
}

// tokenizer_config.json, then tokenizer.model. What the helper does, libFuzzer does not see: what
// can be done here is done here too.
void fuzz_sentencepiece_folder(std::string_view input) {
  static InputFolder folder({"tokenizer_config.json"});
  const auto [config, model] = cut(input);
  folder.set(0, config);
  (void)accepts([&] { (void)read_tokenizer_config(folder.path()); });
  (void)accepts([&, bytes = model] { check_sentencepiece_model(bytes, "tokenizer.model"); });
  SentencePieceProcess::instance().load(ModelKind::kFolder, input);
}

// A pattern, then a text in which it is sought from beginning to end.
void fuzz_regex(std::string_view input) {
  const auto [pattern, text] = cut(input);
  if (find_broken_utf8(text).has_value()) return;
  std::optional<Regex> regex;
  if (!accepts([&] { regex.emplace(std::string(pattern), "tokenizer.json"); })) return;
  RegexScratch scratch;
  (void)accepts([&] {
    for (size_t from = 0; from < text.size();) {
      const auto match = regex->find(text, from, scratch);
      if (!match) break;
      CHECK(from <= match->begin && match->begin <= match->end && match->end <= text.size(),
            "place");
      const bool empty = match->begin == match->end;
      from = match->end;
      if (empty && from < text.size()) from += first_character(text.substr(from)).length;
    }
  });
}

}  // namespace trireme::fuzz

// SPDX-License-Identifier: Apache-2.0
// tokenizer.json, the file of HuggingFace's tokenizers library. Only what the families need is
// read; whatever else would change the ids is refused by name.
#include "coordinator/tokenizer/byte_bpe.h"
#include "coordinator/tokenizer/json_fields.h"

namespace trireme {
namespace {

constexpr int kNestingMax = 8;

void refuse_if(bool condition, const JsonField& field, const std::string& what) {
  if (condition)
    field.fail(what + " is not supported, only byte-level BPE as of the known families");
}

void read_normalizer(const JsonField& field, int depth, ByteBpeModel& model) {
  const std::string& type = field["type"].text();
  if (type == "NFC") {
    model.nfc = true;
    return;
  }
  refuse_if(type != "Sequence" || depth == kNestingMax, field, "the normalizer " + type);
  const JsonField parts = field["normalizers"];
  for (size_t i = 0; i < parts.size(); ++i) read_normalizer(parts.at(i), depth + 1, model);
}

void read_split(const JsonField& field, ByteBpeModel& model) {
  const std::string& behavior = field["behavior"].text();
  refuse_if(behavior != "Isolated", field, "the behavior " + behavior);
  refuse_if(field.boolean("invert", false), field, "invert");
  const JsonField pattern = field["pattern"];
  refuse_if(!pattern.find("Regex").has_value(), pattern, "a pattern that is no Regex");
  model.pre_tokenizer.add_split(pattern["Regex"].text());
}

// Returns whether the bytes are mapped to letters, which the last stage has to do.
bool read_pre_tokenizer(const JsonField& field, int depth, ByteBpeModel& model) {
  const std::string& type = field["type"].text();
  if (type == "Split") {
    read_split(field, model);
    return false;
  }
  if (type == "Digits") {
    // The library's digits are the numbers of Unicode, as \p{N}.
    model.pre_tokenizer.add_split(field.boolean("individual_digits", false) ? "\\p{N}" : "\\p{N}+");
    return false;
  }
  if (type == "ByteLevel") {
    if (field.boolean("add_prefix_space", true)) model.pre_tokenizer.add_space_prefix();
    if (field.boolean("use_regex", true)) model.pre_tokenizer.add_split(kGpt2Pattern);
    return true;
  }
  refuse_if(type != "Sequence" || depth == kNestingMax, field, "the pre-tokenizer " + type);
  const JsonField parts = field["pretokenizers"];
  bool mapped = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    refuse_if(mapped, parts.at(i), "a stage behind ByteLevel");
    mapped = read_pre_tokenizer(parts.at(i), depth + 1, model);
  }
  return mapped;
}

void read_vocabulary(const JsonField& field, ByteBpeModel& model) {
  const size_t count = field.object().size();
  const size_t limit = 2 * count;  // room for gaps, but no allocation by the file's word alone
  for (const auto& [text, value] : field.object().items()) {
    const JsonField entry(value, model.file + ": the id of \"" + text + "\"");
    const auto id = static_cast<size_t>(entry.id());
    if (text.empty()) entry.fail("a token without text");
    if (id >= limit) {
      entry.fail("found " + std::to_string(id) + " in a vocabulary of " + std::to_string(count) +
                 " tokens");
    }
    if (id >= model.tokens.size()) model.tokens.resize(id + 1);
    if (!model.tokens[id].empty()) {
      entry.fail("found " + std::to_string(id) + ", which \"" + model.tokens[id] +
                 "\" has already");
    }
    model.tokens[id] = text;
  }
}

// Each a pair, or in older files one string with a space between.
void read_merges(const JsonField& field, ByteBpeModel& model) {
  const size_t count = field.size();
  for (size_t i = 0; i < count; ++i) {
    const JsonField merge = field.at(i);
    if (!merge.is_string()) {
      if (merge.size() != 2) merge.fail("a merge has two parts");
      model.merges.emplace_back(merge.at(0).text(), merge.at(1).text());
      continue;
    }
    const std::string& text = merge.text();
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      merge.fail("found \"" + text + "\", a merge has two parts with one space between");
    }
    model.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
}

void read_bpe(const JsonField& field, ByteBpeModel& model) {
  const auto type = field.find("type");  // absent in old files
  refuse_if(type.has_value() && type->text() != "BPE", field,
            "the model " + (type ? type->text() : ""));
  refuse_if(field.find("dropout").has_value(), field, "dropout");
  refuse_if(field.boolean("byte_fallback", false), field, "byte_fallback");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = field.find(key);
    refuse_if(affix.has_value() && !affix->text().empty(), field, key);
  }
  model.unknown_token = field.find("unk_token").has_value();
  model.ignore_merges = field.boolean("ignore_merges", false);
  read_vocabulary(field["vocab"], model);
  read_merges(field["merges"], model);
}

void read_added_tokens(const JsonField& field, ByteBpeModel& model) {
  for (size_t i = 0; i < field.size(); ++i) {
    const JsonField entry = field.at(i);
    AddedToken token{entry["id"].id(), entry["content"].text(), entry.boolean("special", false),
                     entry.boolean("normalized", true)};
    // Of a special token these say how it is found in a text, and it never is.
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      refuse_if(!token.special && entry.boolean(key, false), entry, key);
    }
    model.added.push_back(std::move(token));
  }
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::string& file) {
  const nlohmann::json json = read_json(file);
  const JsonField root(json, file + ": ");
  ByteBpeModel model(file);
  if (const auto field = root.find("normalizer")) read_normalizer(*field, 0, model);
  const bool byte_level = read_pre_tokenizer(root["pre_tokenizer"], 0, model);
  refuse_if(!byte_level, root["pre_tokenizer"], "a pre-tokenizer without ByteLevel");
  read_bpe(root["model"], model);
  if (const auto field = root.find("added_tokens")) read_added_tokens(*field, model);
  return make_byte_bpe(std::move(model));
}

}  // namespace trireme

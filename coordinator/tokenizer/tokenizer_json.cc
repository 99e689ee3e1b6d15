// SPDX-License-Identifier: Apache-2.0
// tokenizer.json, the file of HuggingFace's tokenizers library. Only what the families need is
// read; whatever else would change the ids is refused by name.
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/bpe_vocabulary.h"
#include "coordinator/tokenizer/json_fields.h"

namespace trireme {
namespace {

constexpr int kNestingMax = 8;

void refuse_if(bool condition, const JsonField& field, const std::string& what) {
  if (condition)
    field.fail(what + " is not supported, only byte-pair encoding as the known families have it");
}

void read_normalizer(const JsonField& field, int depth, BpeModel& model) {
  const std::string& type = field["type"].text();
  if (type == "NFC") return model.normalizer.add_nfc();
  if (type == "NFKC") return model.normalizer.add_nfkc();
  if (type == "Prepend") return model.normalizer.add_prefix(field["prepend"].text());
  if (type == "Replace") {
    const JsonField pattern = field["pattern"];
    refuse_if(!pattern.find("String").has_value(), pattern, "a pattern that is no String");
    return model.normalizer.add_replacement(pattern["String"].text(), field["content"].text());
  }
  refuse_if(type != "Sequence" || depth == kNestingMax, field, "the normalizer " + type);
  const JsonField parts = field["normalizers"];
  for (size_t i = 0; i < parts.size(); ++i) read_normalizer(parts.at(i), depth + 1, model);
}

Cut read_cut(const JsonField& field) {
  const std::string& behavior = field["behavior"].text();
  const bool invert = field.boolean("invert", false);
  if (behavior == "Isolated") return Cut::kIsolated;
  if (behavior == "Contiguous") return Cut::kContiguous;
  if (behavior == "Removed") return invert ? Cut::kMatchesKept : Cut::kMatchesRemoved;
  refuse_if(invert, field, "invert with the behavior " + behavior);
  if (behavior == "MergedWithPrevious") return Cut::kMergedWithPrevious;
  refuse_if(behavior != "MergedWithNext", field, "the behavior " + behavior);
  return Cut::kMergedWithNext;
}

void read_split(const JsonField& field, BpeModel& model) {
  const JsonField pattern = field["pattern"];
  const auto literal = pattern.find("String");
  model.pre_tokenizer.add_split(
      literal.has_value() ? literal_pattern(literal->text()) : pattern["Regex"].text(),
      read_cut(field));
}

void read_metaspace(const JsonField& field, BpeModel& model) {
  refuse_if(field["replacement"].text() != kMetaspace, field, "another replacement than U+2581");
  // Older files have a boolean in its place.
  const bool prefixed = field.boolean("add_prefix_space", true);
  const auto scheme = field.find("prepend_scheme");
  const std::string name = scheme ? scheme->text() : prefixed ? "always" : "never";
  refuse_if(name != "always" && name != "first" && name != "never", field,
            "the prepend_scheme " + name);
  model.pre_tokenizer.add_metaspace(name == "always"  ? Prefix::kAlways
                                    : name == "first" ? Prefix::kAtTextStart
                                                      : Prefix::kNever);
  if (field.boolean("split", true)) {
    model.pre_tokenizer.add_split(std::string(kMetaspace), Cut::kMergedWithNext);
  }
}

// Returns whether the bytes are mapped to letters, which the last stage has to do.
bool read_pre_tokenizer(const JsonField& field, int depth, BpeModel& model) {
  const std::string& type = field["type"].text();
  if (type == "Split") {
    read_split(field, model);
    return false;
  }
  if (type == "Metaspace") {
    read_metaspace(field, model);
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

// Each a pair, or in older files one string with a space between.
void read_merges(const JsonField& field, BpeModel& model) {
  const size_t count = field.size();
  for (size_t i = 0; i < count; ++i) {
    const JsonField merge = field.at(i);
    if (!merge.is_string()) {
      if (merge.size() != 2) merge.fail("a merge has two parts");
      model.merges.emplace_back(merge.at(0).text(), merge.at(1).text());
      continue;
    }
    if (!add_merge(merge.text(), model)) {
      merge.fail("found \"" + merge.text() + "\", a merge has two parts with one space between");
    }
  }
}

void read_bpe(const JsonField& field, BpeModel& model) {
  const auto type = field.find("type");  // absent in old files
  refuse_if(type.has_value() && type->text() != "BPE", field,
            "the model " + (type ? type->text() : ""));
  refuse_if(field.find("dropout").has_value(), field, "dropout");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = field.find(key);
    refuse_if(affix.has_value() && !affix->text().empty(), field, key);
  }
  const bool fallback = field.boolean("byte_fallback", false);
  const bool bytes = model.letters == Letters::kBytes;
  refuse_if(bytes && fallback, field, "byte_fallback beside ByteLevel");
  refuse_if(!bytes && !fallback, field, "a model with neither ByteLevel nor byte_fallback");
  model.unknown_token = field.find("unk_token").has_value();
  model.ignore_merges = field.boolean("ignore_merges", false);
  read_vocabulary(field["vocab"], model);
  read_merges(field["merges"], model);
}

void read_added_tokens(const JsonField& field, BpeModel& model) {
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

// How the tokens of characters become a text: the steps of Llama's decoder, of which only the last
// differs between files. Byte-level tokens need none.
void read_decoder(const JsonField& field, int depth, BpeModel& model) {
  const std::string& type = field["type"].text();
  if (type == "ByteFallback" || type == "Fuse") return;
  if (type == "Replace") {
    const auto pattern = field["pattern"].find("String");
    const bool known = pattern && pattern->text() == kMetaspace && field["content"].text() == " ";
    refuse_if(!known, field, "a replacement other than of U+2581 by a space");
    return;
  }
  if (type == "Strip") {
    const bool known =
        field["content"].text() == " " && field["start"].id() == 1 && field["stop"].id() == 0;
    refuse_if(!known, field, "stripping other than of one leading space");
    model.drops_first_space = true;
    return;
  }
  refuse_if(type != "Sequence" || depth == kNestingMax, field, "the decoder " + type);
  const JsonField parts = field["decoders"];
  for (size_t i = 0; i < parts.size(); ++i) read_decoder(parts.at(i), depth + 1, model);
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::string& file) {
  const nlohmann::json json = read_json(file);
  const JsonField root(json, file + ": ");
  BpeModel model(file);
  if (const auto field = root.find("normalizer")) read_normalizer(*field, 0, model);
  const auto pre_tokenizer = root.find("pre_tokenizer");
  const bool byte_level = pre_tokenizer && read_pre_tokenizer(*pre_tokenizer, 0, model);
  model.letters = byte_level ? Letters::kBytes : Letters::kCharacters;
  read_bpe(root["model"], model);
  if (!byte_level) read_decoder(root["decoder"], 0, model);
  if (const auto field = root.find("added_tokens")) read_added_tokens(*field, model);
  return make_bpe(std::move(model));
}

}  // namespace trireme

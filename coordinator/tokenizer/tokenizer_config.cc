// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "coordinator/tokenizer/json_fields.h"
#include "coordinator/tokenizer/utf8.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

constexpr const char* kSpecialNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                         "pad_token", "cls_token", "mask_token"};

constexpr size_t kTokenBytesMax = 256;  // each place of a text may be compared with so many

struct Reading {
  std::map<int32_t, AddedToken> added;
  std::set<std::string> special_texts;
};

int32_t parse_id(const std::string& key, const JsonField& field) {
  int32_t id = -1;
  const char* end = key.data() + key.size();
  const auto [at, error] = std::from_chars(key.data(), end, id);
  if (error != std::errc() || at != end || id < 0) {
    field.fail("found the key \"" + key + "\", needs an id in [0, 2^31)");
  }
  return id;
}

void add(AddedToken token, const JsonField& field, Reading& reading) {
  if (token.text.size() > kTokenBytesMax) {
    field.fail("found a token of " + std::to_string(token.text.size()) + " bytes, at most " +
               std::to_string(kTokenBytesMax) + " are taken");
  }
  const auto [at, is_new] = reading.added.emplace(token.id, token);
  if (!is_new && at->second.text != token.text) {
    field.fail("the id " + std::to_string(token.id) + " belongs to \"" + at->second.text +
               "\" and to \"" + token.text + "\"");
  }
}

void read_decoder(const JsonField& field, Reading& reading) {
  for (const auto& [key, value] : field.object().items()) {
    const JsonField entry(value, field.place() + "[" + key + "]");
    AddedToken token{parse_id(key, field), entry["content"].text(), entry.boolean("special", false),
                     entry.boolean("normalized", true)};
    // Of a special token these say how it is found in a text, and it never is.
    for (const char* name : {"single_word", "lstrip", "rstrip"}) {
      if (!token.special && entry.boolean(name, false)) {
        entry.fail(std::string(name) + " is not supported");
      }
    }
    add(std::move(token), entry, reading);
  }
}

// A text, or an object that has one.
const std::string& content_of(const JsonField& field) {
  return field.is_object() ? field["content"].text() : field.text();
}

void read_specials(const JsonField& root, Reading& reading) {
  for (const char* name : kSpecialNames) {
    if (const auto field = root.find(name)) reading.special_texts.insert(content_of(*field));
  }
  if (const auto field = root.find("additional_special_tokens")) {
    for (size_t i = 0; i < field->size(); ++i) {
      reading.special_texts.insert(content_of(field->at(i)));
    }
  }
}

void read_added_tokens(const JsonField& root, Reading& reading) {
  for (const auto& [text, value] : root.object().items()) {
    const JsonField entry(value, root.place() + text);
    const int32_t id = entry.id();
    if (!reading.added.contains(id)) add({id, text, false, true}, entry, reading);
  }
}

}  // namespace

TokenizerConfig read_tokenizer_config(const std::string& folder) {
  TokenizerConfig config;
  config.file = folder + "/tokenizer_config.json";
  Reading reading;
  if (name_exists(config.file)) {
    const nlohmann::json json = read_json(config.file);
    const JsonField root(json, config.file + ": ");
    if (const auto field = root.find("tokenizer_class")) config.tokenizer_class = field->text();
    config.add_prefix_space = root.boolean("add_prefix_space", false);
    if (const auto field = root.find("added_tokens_decoder")) read_decoder(*field, reading);
    read_specials(root, reading);
  }
  const std::string map_file = folder + "/special_tokens_map.json";
  if (name_exists(map_file)) {
    const nlohmann::json json = read_json(map_file);
    read_specials(JsonField(json, map_file + ": "), reading);
  }
  const std::string added_file = folder + "/added_tokens.json";
  if (name_exists(added_file)) {
    const nlohmann::json json = read_json(added_file);
    read_added_tokens(JsonField(json, added_file + ": "), reading);
  }
  for (auto& [id, token] : reading.added) {
    token.special = token.special || reading.special_texts.contains(token.text);
    config.added.push_back(std::move(token));
  }
  config.special_texts.assign(reading.special_texts.begin(), reading.special_texts.end());
  return config;
}

void add_config_tokens(const TokenizerConfig& config, BpeModel& model) {
  model.added.insert(model.added.end(), config.added.begin(), config.added.end());
  std::set<int32_t> known;
  for (const AddedToken& token : config.added) known.insert(token.id);
  for (size_t i = 0; i < model.tokens.size(); ++i) {
    const std::string& text = model.tokens[i];
    const auto id = static_cast<int32_t>(i);
    // A single character is a letter that texts need, even where a file makes "!" its padding.
    if (text.empty() || first_character(text).length == text.size() || known.contains(id)) continue;
    if (std::binary_search(config.special_texts.begin(), config.special_texts.end(), text)) {
      model.added.push_back({id, text, true, false});
    }
  }
}

}  // namespace trireme

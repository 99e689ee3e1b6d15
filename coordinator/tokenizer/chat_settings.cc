// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_settings.h"

#include <cctype>
#include <filesystem>

#include "coordinator/tokenizer/json_fields.h"
#include "kernels/base/error.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

constexpr uint64_t kTextBytesMax = 1 << 20;

std::string read_text_file(const std::string& file) {
  if (!name_exists(file)) return "";
  const MappedFile bytes(file);
  if (bytes.size() > kTextBytesMax) {
    throw Error(Code::kInvalidArgument, "cannot read " + file + ": it has " +
                                            std::to_string(bytes.size()) + " bytes, at most " +
                                            std::to_string(kTextBytesMax) + " are taken");
  }
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// One template, or an array of named ones.
void read_templates(const JsonField& config, ChatSettings& settings) {
  const auto field = config.find("chat_template");
  if (!field.has_value()) return;
  if (field->is_string()) {
    settings.chat_template = field->text();
    return;
  }
  for (size_t i = 0; i < field->size(); ++i) {
    const JsonField entry = field->at(i);
    const std::string& name = entry["name"].text();
    if (name == "default") settings.chat_template = entry["template"].text();
    if (name == "tool_use") settings.tool_template = entry["template"].text();
  }
}

// A special token is named by its text, or by an object that holds it.
std::string token_of(const JsonField& config, const char* key) {
  const auto field = config.find(key);
  if (!field.has_value()) return "";
  return field->is_object() ? (*field)["content"].text() : field->text();
}

// The name that a checkpoint was published under: "THUDM/chatglm2-6b".
std::optional<bool> names_chatglm2(const std::string& file, const char* key) {
  if (!name_exists(file)) return std::nullopt;
  const nlohmann::json json = read_json(file);
  const auto field = JsonField(json, file + ": ").find(key);
  if (!field.has_value() || !field->is_string()) return std::nullopt;
  std::string name = field->text();
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (name.find("chatglm2") != name.npos) return true;
  if (name.find("chatglm3") != name.npos) return false;
  return std::nullopt;
}

// ChatGLM2 and ChatGLM3 have one tokenizer.model and one form of config.json. What tells them apart
// is their published name, or that ChatGLM2's tokenizer code knows no role tokens; the code is only
// searched. Where nothing tells, ChatGLM3.
bool looks_like_chatglm2(const std::string& path) {
  const auto by_config = names_chatglm2(path + "/config.json", "_name_or_path");
  if (by_config.has_value()) return *by_config;
  const auto by_tokenizer = names_chatglm2(path + "/tokenizer_config.json", "name_or_path");
  if (by_tokenizer.has_value()) return *by_tokenizer;
  const std::string code = read_text_file(path + "/tokenization_chatglm.py");
  return !code.empty() && code.find("<|user|>") == code.npos;
}

void add_template_prefix(const JsonField& processor, const Tokenizer& tokenizer,
                         std::vector<int32_t>& prefix) {
  const JsonField parts = processor["single"];
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto token = parts.at(i).find("SpecialToken");
    if (!token.has_value()) return;  // the text; what follows it is no prefix
    const std::string& text = (*token)["id"].text();
    const auto id = tokenizer.special(text);
    if (!id.has_value()) token->fail("\"" + text + "\" is no special token of this tokenizer");
    prefix.push_back(*id);
  }
}

// What the post-processor of a tokenizer.json puts in front of a text.
std::vector<int32_t> processor_prefix(const std::string& file, const Tokenizer& tokenizer) {
  const nlohmann::json json = read_json(file);
  std::vector<int32_t> prefix;
  const auto processor = JsonField(json, file + ": ").find("post_processor");
  if (!processor.has_value()) return prefix;
  const std::string& type = (*processor)["type"].text();
  if (type == "TemplateProcessing") add_template_prefix(*processor, tokenizer, prefix);
  if (type != "Sequence") return prefix;
  const JsonField parts = (*processor)["processors"];
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts.at(i)["type"].text() == "TemplateProcessing") {
      add_template_prefix(parts.at(i), tokenizer, prefix);
    }
  }
  return prefix;
}

void read_directory(const std::string& path, const std::vector<int32_t>& bos,
                    const Tokenizer& tokenizer, ChatSettings& settings) {
  const std::string config_file = path + "/tokenizer_config.json";
  const std::string tokenizer_file = path + "/tokenizer.json";
  std::optional<bool> adds_bos;
  if (name_exists(config_file)) {
    const nlohmann::json json = read_json(config_file);
    const JsonField config(json, config_file + ": ");
    read_templates(config, settings);
    settings.bos_token = token_of(config, "bos_token");
    settings.eos_token = token_of(config, "eos_token");
    if (const auto field = config.find("add_bos_token")) adds_bos = field->boolean();
  }
  // As transformers: a file of its own goes before what the config has.
  if (const std::string file = path + "/chat_template.jinja"; name_exists(file)) {
    settings.chat_template = read_text_file(file);
    settings.tool_template = read_text_file(path + "/additional_chat_templates/tool_use.jinja");
  }
  if (adds_bos.has_value()) {
    if (*adds_bos) settings.prefix = bos;
  } else if (name_exists(tokenizer_file)) {
    settings.prefix = processor_prefix(tokenizer_file, tokenizer);
  } else {
    settings.prefix = bos;  // the default of Llama's sentencepiece tokenizer
  }
}

// A text with its escapes resolved, up to `quote`; nullopt where no such quote follows.
std::optional<std::string> read_literal(std::string_view text, char quote) {
  std::string literal;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == quote) return literal;
    if (text[at] == '\\' && at + 1 < text.size()) {
      ++at;
      literal += text[at] == 'n' ? '\n' : text[at];
    } else {
      literal += text[at];
    }
  }
  return std::nullopt;
}

}  // namespace

ChatSettings read_chat_settings(const std::string& path, const std::string& family, int32_t bos_id,
                                const Tokenizer& tokenizer) {
  ChatSettings settings;
  settings.family = family;
  std::vector<int32_t> bos;
  if (bos_id >= 0) bos.push_back(bos_id);
  if (std::filesystem::is_directory(path)) {
    read_directory(path, bos, tokenizer, settings);
    settings.is_chatglm2 = family == "chatglm" && looks_like_chatglm2(path);
    return settings;
  }
  const GgufFile gguf(path);
  settings.chat_template = gguf.string("tokenizer.chat_template").value_or("");
  settings.tool_template = gguf.string("tokenizer.chat_template.tool_use").value_or("");
  // Where the flag is left out, Llama's own tokenizers mean it: sentencepiece ("llama"), and old
  // conversions of Llama 3.
  const bool by_default = gguf.string("tokenizer.ggml.model").value_or("") == "llama" ||
                          gguf.string("tokenizer.ggml.pre").value_or("") == "llama-bpe";
  if (gguf.boolean("tokenizer.ggml.add_bos_token").value_or(by_default)) settings.prefix = bos;
  return settings;
}

std::optional<std::string> default_system_message(const std::string& chat_template) {
  constexpr std::string_view kBegin = "<|im_start|>system";
  constexpr std::string_view kEnd = "<|im_end|>";
  const std::string_view text = chat_template;
  for (size_t at = text.find(kBegin); at != text.npos; at = text.find(kBegin, at + 1)) {
    const bool quoted = at > 0 && (text[at - 1] == '\'' || text[at - 1] == '"');
    const std::string_view rest = text.substr(at + kBegin.size());
    // Outside of tags the text ends where the next tag begins.
    const auto literal = quoted ? read_literal(rest, text[at - 1])
                                : std::optional(std::string(rest.substr(0, rest.find('{'))));
    if (!literal.has_value() || !literal->starts_with('\n')) continue;
    const size_t end = literal->find(kEnd);
    if (end != literal->npos) return literal->substr(1, end - 1);
  }
  return std::nullopt;
}

}  // namespace trireme

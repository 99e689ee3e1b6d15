// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/served.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "coordinator/tokenizer/chat_formats.h"
#include "tests/fuzz/fuzz.h"
#include "worker/model/family.h"

namespace trireme::fuzz {
namespace {

constexpr const char* kSpecialTokens[] = {"[gMASK]",
                                          "sop",
                                          "<sop>",
                                          "</s>",
                                          "<s>",
                                          "<|endoftext|>",
                                          "<|system|>",
                                          "<|user|>",
                                          "<|assistant|>",
                                          "<|begin_of_text|>",
                                          "<|observation|>",
                                          "<|start_header_id|>",
                                          "<|eot_id|>",
                                          "<|end_of_text|>",
                                          "<|end_header_id|>",
                                          "<|eom_id|>",
                                          "<|python_tag|>",
                                          "<bos>",
                                          "<eos>",
                                          "<start_of_turn>",
                                          "<end_of_turn>",
                                          "[INST]",
                                          "[/INST]",
                                          "[TOOL_CALLS]",
                                          "[AVAILABLE_TOOLS]",
                                          "[/AVAILABLE_TOOLS]",
                                          "[TOOL_RESULTS]",
                                          "[/TOOL_RESULTS]",
                                          "[TOOL_CONTENT]",
                                          "[SYSTEM_PROMPT]",
                                          "[/SYSTEM_PROMPT]"};
constexpr const char* kWords[] = {"<tool_call>", "</tool_call>", "<think>", "</think>"};

nlohmann::json tokenizer_with_every_token() {
  std::ifstream file(std::string(TRIREME_SOURCE_DIR) + "/tests/data/tiny-qwen2/tokenizer.json");
  nlohmann::json tokenizer = nlohmann::json::parse(file);
  nlohmann::json& added = tokenizer["added_tokens"];
  size_t next = tokenizer["model"]["vocab"].size() + added.size();
  const auto add = [&](const std::string& content, bool special) {
    for (const auto& token : added) {
      if (token["content"] == content) return;
    }
    nlohmann::json token = added[0];
    token.update({{"id", next++}, {"content", content}, {"special", special}});
    added.push_back(token);
  };
  for (const char* content : kSpecialTokens) add(content, true);
  for (const char* content : kWords) add(content, false);
  return tokenizer;
}

}  // namespace

Served::Served(const std::string& name)
    : path(std::string(TRIREME_SOURCE_DIR) + "/tests/data/" + name),
      spec(read_model_spec(path)),
      tokenizer(load_tokenizer(path, spec.family())),
      chat(make_chat_format(path, spec.family(), spec.bos_id(), *tokenizer)) {}

const Served& served() {
  static const Served model("tiny-llama3");
  return model;
}

EveryFormat::EveryFormat() {
  InputFolder folder({"tokenizer.json"});
  folder.set(0, tokenizer_with_every_token().dump());
  tokenizer_ = load_tokenizer(folder.path(), "qwen2");
  spec_.set_vocab_size(tokenizer_->size() + 8);
  spec_.set_context_length(4096);
  ChatSettings settings;
  settings.family = "qwen2";
  const auto add = [&](FormatVariants variants) {
    for (auto& variant : variants) formats_.push_back(std::move(variant));
  };
  for (const char* chat_template : {"", "any"}) {
    settings.chat_template = chat_template;
    for (const bool is_chatglm2 : {false, true}) {
      settings.is_chatglm2 = is_chatglm2;
      add(make_chatglm(settings, *tokenizer_));
    }
    for (const auto make : {make_chatml, make_glm, make_llama3, make_gemma, make_inst}) {
      add(make(settings, *tokenizer_));
    }
  }
  CHECK(formats_.size() > 20 && formats_.size() < 256, "a byte chooses the format");
}

ServedModel EveryFormat::model(size_t number) const {
  return {spec_, *tokenizer_, *formats_[number % formats_.size()], spec_.context_length()};
}

const EveryFormat& every_format() {
  static const EveryFormat all;
  return all;
}

}  // namespace trireme::fuzz

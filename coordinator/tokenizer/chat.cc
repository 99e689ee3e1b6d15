// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat.h"

#include <algorithm>

#include "coordinator/tokenizer/chat_formats.h"
#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace trireme {
namespace {

struct FormatRow {
  std::vector<const char*> tokens;  // all must be special tokens of the tokenizer
  FormatVariants (*make)(const ChatSettings&, const Tokenizer&);
  // Copies of ChatGLM's tokenizer_config.json carry a template that joins what the model's code
  // encodes apart; the code's ids are known from its authors' and others' tests.
  bool right_by_code = false;
};

// The list of formats; the first whose tokens are there. GLM-4 checkpoints of family "chatglm" have
// <sop> where ChatGLM3 has sop, so the tokens tell more than the family.
const std::vector<FormatRow>& format_rows() {
  static const std::vector<FormatRow> rows = {
      {{"[gMASK]", "sop", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"},
       make_chatglm,
       true},
      {{"[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>",
        "<|observation|>"},
       make_glm},
      {{"<|im_start|>", "<|im_end|>"}, make_chatml},
      {{"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
        "<|end_of_text|>"},
       make_llama3},
      {{"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"}, make_gemma},
      {{"<s>", "</s>"}, make_inst},
  };
  return rows;
}

[[noreturn]] void refuse(Code code, const std::string& path, const std::string& what) {
  throw Error(code, path + ": " + what);
}

void check_turn(const ChatFormat& format, const ChatTurn& turn, const std::string& path) {
  const std::string& role = turn.role;
  const bool is_tool = role == "tool" || role == "observation";
  if (role != "system" && role != "user" && role != "assistant" && !is_tool) {
    // A role that is not UTF-8 could not be sent back in a gRPC status.
    const bool printable = role.size() <= 32 && !find_broken_utf8(role).has_value();
    refuse(Code::kInvalidArgument, path + ".role",
           "found " + (printable ? "\"" + role + "\"" : "an unknown role") +
               ", allowed: \"system\", \"user\", \"assistant\" or \"tool\"");
  }
  if (const auto at = find_broken_utf8(turn.content)) {
    refuse(Code::kInvalidArgument, path + ".content",
           "found a byte that is not UTF-8 at offset " + std::to_string(*at) +
               ", allowed: valid UTF-8");
  }
  if (role != "assistant" && !turn.calls.empty()) {
    refuse(Code::kInvalidArgument, path + ".tool_calls",
           "found them with the role \"" + role + "\", allowed: with \"assistant\" only");
  }
  const std::string lacking =
      std::string("the chat format of this model (") + format.name() + ") has no ";
  if ((is_tool || !turn.calls.empty()) && !format.knows_tools()) {
    refuse(Code::kUnimplemented, path + (is_tool ? ".role" : ".tool_calls"),
           lacking + "tools; leave them out");
  }
  if (!turn.metadata.empty() && (role != "assistant" || !format.knows_metadata())) {
    refuse(Code::kUnimplemented, path + ".name", lacking + "name with this role; leave it out");
  }
}

}  // namespace

std::vector<int32_t> ChatFormat::render(const Conversation& conversation) const {
  if (conversation.turns.empty()) {
    refuse(Code::kInvalidArgument, "messages",
           "the conversation has no message; send at least one");
  }
  if (!conversation.tools.empty() && !knows_tools()) {
    refuse(Code::kUnimplemented, "tools_json",
           std::string("is set, and the chat format of this model (") + name() +
               ") has no tools; leave it out");
  }
  for (size_t i = 0; i < conversation.turns.size(); ++i) {
    check_turn(*this, conversation.turns[i], "messages[" + std::to_string(i) + "]");
  }
  Prompt prompt(tokenizer_);
  Conversation named = conversation;
  for (ChatTurn& turn : named.turns) {
    if (turn.role == "observation") turn.role = "tool";
  }
  write(named, prompt);
  return prompt.take();
}

std::unique_ptr<AnswerReader> ChatFormat::answer_reader(std::span<const Tool>) const {
  return nullptr;
}

std::vector<int32_t> ChatFormat::plain(std::string_view text) const {
  std::vector<int32_t> ids = prefix_;
  const std::vector<int32_t> body = tokenizer_.encode(text);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

namespace {

// A model that Chat is refused for. Everything of a conversation is well until it would be written.
class NoChat final : public ChatFormat {
 public:
  NoChat(const Tokenizer& tokenizer, std::vector<int32_t> prefix, std::vector<int32_t> stop_ids,
         std::string reason)
      : ChatFormat(tokenizer), reason_(std::move(reason)) {
    prefix_ = std::move(prefix);
    stop_ids_ = std::move(stop_ids);
  }
  const char* name() const override { return "none"; }
  bool knows_tools() const override { return true; }
  bool knows_metadata() const override { return true; }

 protected:
  void write(const Conversation&, Prompt&) const override {
    throw Error(Code::kUnimplemented,
                "cannot chat with this model: " + reason_ + "; use Generate with a plain prompt");
  }

 private:
  const std::string reason_;
};

}  // namespace

std::unique_ptr<ChatFormat> make_chat_format(const std::string& path, const std::string& family,
                                             int32_t bos_id, const Tokenizer& tokenizer) {
  const ChatSettings settings = read_chat_settings(path, family, bos_id, tokenizer);
  const auto& rows = format_rows();
  const auto row = std::find_if(rows.begin(), rows.end(), [&](const FormatRow& candidate) {
    return std::all_of(candidate.tokens.begin(), candidate.tokens.end(),
                       [&](const char* text) { return tokenizer.special(text).has_value(); });
  });
  const auto no_chat = [&](std::vector<int32_t> stop_ids, std::string reason) {
    return std::make_unique<NoChat>(tokenizer, settings.prefix, std::move(stop_ids),
                                    std::move(reason));
  };
  FormatVariants variants;
  if (row != rows.end()) variants = row->make(settings, tokenizer);
  if (variants.empty()) {
    return no_chat({},
                   "its tokenizer has the special tokens of no known chat format (ChatGLM, GLM, "
                   "ChatML, Llama 3, Gemma), and there is no chat_template that tells one");
  }
  if (settings.chat_template.empty()) return std::move(variants[0]);
  const TemplateJudge judge(settings, tokenizer);
  std::string first_difference;
  for (std::unique_ptr<ChatFormat>& variant : variants) {
    const auto difference = judge.difference(*variant);
    if (!difference.has_value()) return std::move(variant);
    if (first_difference.empty()) first_difference = *difference;
  }
  if (row->right_by_code) {
    log_info(std::string("the chat_template of ") + path +
             " differs from the format of the model's own code, " + variants[0]->name() +
             ", which is used: " + first_difference);
    return std::move(variants[0]);
  }
  return no_chat(variants[0]->stop_ids(),
                 "its chat_template writes other prompts than the built-in formats of its special "
                 "tokens; " +
                     first_difference);
}

}  // namespace trireme

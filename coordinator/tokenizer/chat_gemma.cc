// SPDX-License-Identifier: Apache-2.0
// Gemma 1 to 3: <start_of_turn>role newline content<end_of_turn> newline.
#include "coordinator/tokenizer/chat_formats.h"
#include "coordinator/tokenizer/chat_prompt.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

class Gemma final : public ChatFormat {
 public:
  // system: a system message stands in front of the first question, as Gemma 3 has it; else there
  // is none.
  Gemma(const Tokenizer& tokenizer, const ChatSettings& settings, bool system)
      : ChatFormat(tokenizer), system_(system) {
    prefix_ = settings.prefix;
    stop_ids_ = Prompt(tokenizer).token("<end_of_turn>").token("<eos>").take();
  }
  const char* name() const override { return "gemma"; }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    const std::vector<ChatTurn>& turns = conversation.turns;
    const size_t begin = turns[0].role == "system" && system_ ? 1 : 0;
    prompt.token("<bos>");
    for (size_t i = begin; i < turns.size(); ++i) {
      const bool question = (i - begin) % 2 == 0;
      if (turns[i].role != (question ? "user" : "assistant")) {
        throw Error(Code::kInvalidArgument, "messages[" + std::to_string(i) + "].role: found \"" +
                                                turns[i].role + "\", allowed: \"" +
                                                (question ? "user" : "assistant") +
                                                "\"; Gemma knows questions and answers in turn" +
                                                (system_ ? "" : ", and no system message"));
      }
      prompt.token("<start_of_turn>").text(question ? "user\n" : "model\n");
      if (begin == 1 && i == 1) prompt.text(turns[0].content + "\n\n");
      prompt.text(strip(turns[i].content)).token("<end_of_turn>").text("\n");
    }
    prompt.token("<start_of_turn>").text("model\n");
  }

 private:
  const bool system_;
};

}  // namespace

FormatVariants make_gemma(const ChatSettings& settings, const Tokenizer& tokenizer) {
  const bool is_gemma3 = settings.family.starts_with("gemma3");
  FormatVariants variants;
  variants.push_back(std::make_unique<Gemma>(tokenizer, settings, is_gemma3));
  variants.push_back(std::make_unique<Gemma>(tokenizer, settings, !is_gemma3));
  return variants;
}

}  // namespace trireme

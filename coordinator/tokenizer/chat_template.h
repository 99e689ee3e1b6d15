// SPDX-License-Identifier: Apache-2.0
// Compares a built-in chat format with the chat_template of a checkpoint: fixed conversations are
// written by both, and the ids must be the same. A template is run for nothing else.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/chat_settings.h"

namespace trireme {

class TemplateJudge {
 public:
  // settings and tokenizer must outlive it. A template that this engine cannot read is different
  // from every format.
  TemplateJudge(const ChatSettings& settings, const Tokenizer& tokenizer);
  ~TemplateJudge();

  // nullopt: the same ids for every conversation, those with tools included where the format knows
  // tools. Else where they differ first.
  std::optional<std::string> difference(const ChatFormat& format) const;

 private:
  struct Templates;
  const Tokenizer& tokenizer_;
  std::unique_ptr<const Templates> templates_;
};

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Models of tests/data as they are served; without sentencepiece, see sentencepiece_process.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/validate.h"
#include "proto/cluster.pb.h"

namespace trireme::fuzz {

struct Served {
  explicit Served(const std::string& name);
  ServedModel model() const { return {spec, *tokenizer, *chat, spec.context_length()}; }

  const std::string path;
  const ModelSpec spec;
  const std::unique_ptr<Tokenizer> tokenizer;
  const std::unique_ptr<ChatFormat> chat;
};

const Served& served();

// A vocabulary with the special tokens of every chat format, and every variant of every format over
// it, those included that only a template chooses.
class EveryFormat {
 public:
  EveryFormat();

  size_t size() const { return formats_.size(); }
  // One of them, whatever the number.
  ServedModel model(size_t number) const;

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
  ModelSpec spec_;
  std::vector<std::unique_ptr<ChatFormat>> formats_;
};

const EveryFormat& every_format();

// The special tokens that part an answer: '\1' in an input is the first of them, and so on.
inline constexpr const char* kAnswerTokens[] = {"<|assistant|>", "<|python_tag|>", "[TOOL_CALLS]",
                                                "<|user|>", "<|eom_id|>"};

}  // namespace trireme::fuzz

// SPDX-License-Identifier: Apache-2.0
// Models of tests/data as they are served; without sentencepiece, see sentencepiece_process.h.
#pragma once

#include <memory>
#include <string>

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

// One of them, whatever the number.
const Served& served(size_t number);

}  // namespace trireme::fuzz

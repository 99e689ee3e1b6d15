// SPDX-License-Identifier: Apache-2.0
// The prompts of `trireme generate`, from flags and from a file, as the requests that a client
// would send: so they are checked by the same code.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "launch/options.h"
#include "proto/inference.pb.h"

namespace trireme {

struct GenerateItem {
  std::string where;  // for messages: "--prompt", "prompts.jsonl:7"
  std::variant<v1::GenerateRequest, v1::ChatRequest> request;
};

// In this order: --prompt, --chat, --prompt_ids, the lines of --input. Throws kNotFound (the file)
// or kInvalidArgument naming the line and the key.
std::vector<GenerateItem> read_items(const GenerateFlags& flags);

}  // namespace trireme

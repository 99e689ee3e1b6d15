// SPDX-License-Identifier: Apache-2.0
// What stands beside a vocabulary in a checkpoint's folder: its class and the tokens added to it.
#pragma once

#include <string>
#include <vector>

#include "coordinator/tokenizer/bpe.h"

namespace trireme {

struct TokenizerConfig {
  std::string file;               // tokenizer_config.json, for messages
  std::string tokenizer_class;    // empty: not said
  std::vector<AddedToken> added;  // by id, each id once
  // Texts of special tokens, which may be added ones or of the vocabulary; sorted.
  std::vector<std::string> special_texts;
  bool add_prefix_space = false;
};

// From tokenizer_config.json, added_tokens.json and special_tokens_map.json, each of which may be
// absent and is not trusted. Throws kInvalidArgument naming the file and the place in it.
TokenizerConfig read_tokenizer_config(const std::string& folder);

// Adds the config's tokens to a model whose vocabulary is read.
void add_config_tokens(const TokenizerConfig& config, BpeModel& model);

}  // namespace trireme

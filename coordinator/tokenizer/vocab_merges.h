// SPDX-License-Identifier: Apache-2.0
// The files of GPT-2's tokenizer, vocab.json and merges.txt, as Qwen ships them too.
#pragma once

#include <memory>
#include <string>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

// The files are not trusted. How a text is cut follows from tokenizer_config.json's
// tokenizer_class, or from the family where that is absent; others are refused.
std::unique_ptr<Tokenizer> load_vocab_merges(const std::string& folder, const std::string& family);

}  // namespace trireme

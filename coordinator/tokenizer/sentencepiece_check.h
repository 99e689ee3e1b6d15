// SPDX-License-Identifier: Apache-2.0
// sentencepiece trusts parts of its model files: the tables of the normaliser are walked without a
// look at their bounds, and the pieces are sorted into a trie by a recursion as deep as a piece is
// long. A file that would lead it astray is refused here first.
#pragma once

#include <string>
#include <string_view>

namespace trireme {

// bytes: a whole tokenizer.model. Throws kInvalidArgument naming the file and what is wrong.
void check_sentencepiece_model(std::string_view bytes, const std::string& file);

}  // namespace trireme

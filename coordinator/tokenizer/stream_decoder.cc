// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/stream_decoder.h"

#include "coordinator/tokenizer/utf8.h"

namespace trireme {

std::string StreamDecoder::push(int32_t id) {
  // A special token ends a run: a character cannot go on behind it.
  if (tokenizer_.is_special(id)) {
    at_start_ = true;
    return finish();
  }
  held_ += tokenizer_.bytes_of(id, at_start_);
  at_start_ = false;
  return take_characters(held_);
}

std::string StreamDecoder::finish() {
  std::string text = take_characters(held_);
  if (!held_.empty()) text += kReplacementCharacter;
  held_.clear();
  return text;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat.h"

#include <algorithm>

#include "coordinator/tokenizer/chat_formats.h"

namespace trireme {
namespace {

struct FormatRow {
  std::vector<const char*> tokens;  // all must be special tokens of the tokenizer
  std::unique_ptr<ChatFormat> (*make)(const ChatSettings&, const Tokenizer&);
};

// The list of formats; the first whose tokens are there. GLM-4 checkpoints of family "chatglm" have
// <sop> where ChatGLM3 has sop, so the tokens tell more than the family.
const std::vector<FormatRow>& format_rows() {
  static const std::vector<FormatRow> rows = {
      {{"[gMASK]", "sop", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"},
       make_chatglm3},
      {{"[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>",
        "<|observation|>"},
       make_glm},
      {{"<|im_start|>", "<|im_end|>"}, make_chatml},
      {{"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
        "<|end_of_text|>"},
       make_llama3},
      {{}, make_no_chat},
  };
  return rows;
}

}  // namespace

std::vector<int32_t> ChatFormat::plain(std::string_view text) const {
  std::vector<int32_t> ids = prefix_;
  const std::vector<int32_t> body = tokenizer_.encode(text);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

std::unique_ptr<ChatFormat> make_chat_format(const std::string& path, const std::string& family,
                                             int32_t bos_id, const Tokenizer& tokenizer) {
  const ChatSettings settings = read_chat_settings(path, family, bos_id, tokenizer);
  const auto& rows = format_rows();
  const auto row = std::find_if(rows.begin(), rows.end(), [&](const FormatRow& candidate) {
    return std::all_of(candidate.tokens.begin(), candidate.tokens.end(),
                       [&](const char* text) { return tokenizer.special(text).has_value(); });
  });
  return row->make(settings, tokenizer);
}

}  // namespace trireme

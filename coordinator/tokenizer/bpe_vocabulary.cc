// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/bpe_vocabulary.h"

namespace trireme {

void read_vocabulary(const JsonField& field, BpeModel& model) {
  const size_t count = field.object().size();
  const size_t limit = 2 * count;  // room for gaps, but no allocation by the file's word alone
  for (const auto& [text, value] : field.object().items()) {
    const JsonField entry(value, model.file + ": the id of \"" + text + "\"");
    const auto id = static_cast<size_t>(entry.id());
    if (text.empty()) entry.fail("a token without text");
    if (id >= limit) {
      entry.fail("found " + std::to_string(id) + " in a vocabulary of " + std::to_string(count) +
                 " tokens");
    }
    if (id >= model.tokens.size()) model.tokens.resize(id + 1);
    if (!model.tokens[id].empty()) {
      entry.fail("found " + std::to_string(id) + ", which \"" + model.tokens[id] +
                 "\" has already");
    }
    model.tokens[id] = text;
  }
}

bool add_merge(const std::string& line, BpeModel& model) {
  const size_t space = line.find(' ');
  if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) return false;
  model.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  return true;
}

}  // namespace trireme

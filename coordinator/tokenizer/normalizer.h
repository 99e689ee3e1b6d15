// SPDX-License-Identifier: Apache-2.0
// What is done to a text before it is cut: Unicode forms, and the spaces of sentencepiece.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// Steps, in order. Immutable once built.
class Normalizer {
 public:
  explicit Normalizer(std::string file) : file_(std::move(file)) {}  // for messages

  void add_nfc() { add({Kind::kNfc, "", ""}); }
  void add_nfkc() { add({Kind::kNfkc, "", ""}); }
  // In front of every text that is not empty.
  void add_prefix(std::string prefix) { add({Kind::kPrefix, "", std::move(prefix)}); }
  void add_replacement(std::string what, std::string by) {
    add({Kind::kReplacement, std::move(what), std::move(by)});
  }

  bool empty() const { return steps_.empty(); }
  std::string apply(std::string_view text) const;

 private:
  enum class Kind { kNfc, kNfkc, kPrefix, kReplacement };
  struct Step {
    Kind kind;
    std::string what;
    std::string by;
  };
  void add(Step step);

  std::string file_;
  std::vector<Step> steps_;
};

}  // namespace trireme

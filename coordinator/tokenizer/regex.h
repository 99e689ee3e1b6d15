// SPDX-License-Identifier: Apache-2.0
// The regular expressions of pre-tokenizers. They were written for Oniguruma and come from a file
// that is not trusted: what PCRE2 would read in another way is refused, and matching has limits.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;
struct pcre2_real_jit_stack_8;

namespace trireme {

// What matches need beside the pattern: one for each text, on one thread. It also bounds the time
// of all matches in that text together, since a pattern may look at the rest of a text at each.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class Regex;
  // Throws kInvalidArgument where the matches in a text of this size have taken too long.
  void check_time(const std::string& pattern, size_t text_bytes) const;
  struct Free {
    void operator()(pcre2_real_match_context_8* context) const;
    void operator()(pcre2_real_match_data_8* data) const;
    void operator()(pcre2_real_jit_stack_8* stack) const;
  };
  std::unique_ptr<pcre2_real_jit_stack_8, Free> stack_;
  std::unique_ptr<pcre2_real_match_context_8, Free> context_;
  std::unique_ptr<pcre2_real_match_data_8, Free> data_;
  double start_s_;
  uint64_t matches_ = 0;
};

struct RegexMatch {
  size_t begin;
  size_t end;
};

// Immutable: any thread may match, with a scratch of its own.
class Regex {
 public:
  // file: where the pattern comes from, for messages. Throws kInvalidArgument: not a regular
  // expression, or one that we would match differently.
  Regex(const std::string& pattern, const std::string& file);

  // The first match that begins at or after `from`. text is valid UTF-8 and `from` a character's
  // beginning. Throws kInvalidArgument where a limit is exceeded.
  std::optional<RegexMatch> find(std::string_view text, size_t from, RegexScratch& scratch) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string pattern_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace trireme

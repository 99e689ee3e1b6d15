// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/regex.h"

#include <time.h>

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace trireme {
namespace {

constexpr size_t kPatternBytesMax = 16 << 10;
constexpr uint32_t kHeapKibMax = 64 << 10;
constexpr uint32_t kDepthMax = 250'000;
constexpr size_t kJitStackBytesMax = 1 << 20;
// Backtracking steps of one match: a run of blanks is walked back once by the known patterns, so
// the limit grows with the text.
constexpr uint32_t kStepsMin = 100'000;
constexpr uint32_t kStepsPerByte = 16;
// The first try of a match; no word needs more. Each further one may take twice as many, and
// between them the clock is looked at: a step may walk over the whole text, which PCRE2 does not
// count.
constexpr uint32_t kStepsFirst = 1024;
// Processor time of all matches in a text. The known patterns take about 0.1 µs a byte.
constexpr double kSecondsMin = 2;
constexpr double kSecondsPerByte = 5e-6;
constexpr uint64_t kMatchesPerLook = 64;  // at the clock
// Places that one try may begin at: PCRE2 counts steps anew for each.
constexpr size_t kPlacesAtOnce = 64;

double processor_seconds() {
  timespec now{};
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0, "the clock of a thread");
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Source {
  const std::string& pattern;
  const std::string& file;
};

[[noreturn]] void refuse(const Source& source, const std::string& reason) {
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + source.file +
                                          ": its pre-tokenizer has the pattern " + source.pattern +
                                          ": " + reason +
                                          "; use the tokenizer of a supported family");
}

// One escape, at pattern[at] == '\\', in PCRE2's words. Oniguruma's \s is exactly White_Space,
// PCRE2's has U+180E too. Escapes that differ, or that no known tokenizer uses, are refused.
std::string translate_escape(const Source& source, size_t at) {
  const std::string& pattern = source.pattern;
  if (at + 1 == pattern.size()) refuse(source, "it ends in a backslash");
  const char letter = pattern[at + 1];
  if (letter == 's') return "\\p{White_Space}";
  if (letter == 'S') return "\\P{White_Space}";
  const bool alphanumeric = (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') ||
                            (letter >= 'A' && letter <= 'Z');
  if (alphanumeric && std::string_view("pPdDrntf").find(letter) == std::string_view::npos) {
    refuse(source, std::string("the escape \\") + letter + " is not supported");
  }
  return pattern.substr(at, 2);
}

void check_group(const Source& source, size_t at) {
  const std::string& pattern = source.pattern;
  if (pattern.compare(at, 2, "(*") == 0) refuse(source, "verbs (* are not supported");
  if (pattern.compare(at, 2, "(?") != 0) return;
  for (const char* known : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
    if (pattern.compare(at, std::string_view(known).size(), known) == 0) return;
  }
  refuse(source, "the group " + pattern.substr(at, 4) + " is not supported");
}

// Whether pattern[at] closes a count and a plus follows, as in a{1,3}+: possessive for PCRE2,
// repeated for Oniguruma. The braces of \p{L}+ are none of a count.
bool repeats_a_count(const std::string& pattern, size_t at) {
  const size_t open = pattern.rfind('{', at);
  if (pattern.compare(at, 2, "}+") != 0 || open == pattern.npos) return false;
  return open < 2 || pattern[open - 2] != '\\' || (pattern[open - 1] | 0x20) != 'p';
}

// The pattern for PCRE2, or a refusal.
std::string translate(const Source& source) {
  const std::string& pattern = source.pattern;
  std::string result;
  bool in_class = false;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c == '\\') {
      result += translate_escape(source, at++);
      continue;
    }
    if (c == '[' && in_class) refuse(source, "a class inside a class is not supported");
    if (c == '&' && in_class && pattern.compare(at, 2, "&&") == 0) {
      refuse(source, "the intersection && is not supported");
    }
    if (c == '(' && !in_class) check_group(source, at);
    if (c == '}' && !in_class && repeats_a_count(pattern, at)) {
      refuse(source, "}+ is not supported");
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    result += c;
  }
  return result;
}

std::string message_of(int code) {
  PCRE2_UCHAR text[256] = "";
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

void RegexScratch::Free::operator()(pcre2_match_context* context) const {
  pcre2_match_context_free(context);
}
void RegexScratch::Free::operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
void RegexScratch::Free::operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
void Regex::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }

RegexScratch::RegexScratch()
    : stack_(pcre2_jit_stack_create(32 << 10, kJitStackBytesMax, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      data_(pcre2_match_data_create(1, nullptr)),
      start_s_(processor_seconds()) {
  if (context_ == nullptr || data_ == nullptr) {
    throw Error(Code::kResourceExhausted, "cannot tokenize: no memory for a regular expression");
  }
  pcre2_set_heap_limit(context_.get(), kHeapKibMax);
  pcre2_set_depth_limit(context_.get(), kDepthMax);
  // Without JIT there is no stack, and none is needed.
  if (stack_ != nullptr) pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
}

void RegexScratch::check_time(const std::string& pattern, size_t text_bytes) const {
  const double limit_s = kSecondsMin + kSecondsPerByte * static_cast<double>(text_bytes);
  if (processor_seconds() - start_s_ <= limit_s) return;
  throw Error(Code::kInvalidArgument,
              "cannot tokenize a text of " + std::to_string(text_bytes) +
                  " bytes: the pre-tokenizer's pattern " + pattern + " has taken more than " +
                  std::to_string(static_cast<int>(limit_s)) +
                  " s of processor time; send a shorter or a less repetitive text");
}

Regex::Regex(const std::string& pattern, const std::string& file) : pattern_(pattern) {
  const Source source{pattern, file};
  if (pattern.empty() || pattern.size() > kPatternBytesMax) {
    throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file +
                                            ": its pre-tokenizer has a pattern of " +
                                            std::to_string(pattern.size()) + " bytes, 1 to " +
                                            std::to_string(kPatternBytesMax) + " are allowed");
  }
  const std::string translated = translate(source);
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  CHECK(context != nullptr, "pcre2_compile_context_create");
  // ^ and $ are those of lines, as in Oniguruma's Ruby syntax.
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  const uint32_t options =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT;
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                            options, &error, &offset, context.get()));
  if (code_ == nullptr) refuse(source, message_of(error));
  // Faster where it is there; the interpreter gives the same matches.
  (void)pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
}

std::optional<RegexMatch> Regex::find(std::string_view text, size_t from,
                                      RegexScratch& scratch) const {
  const uint64_t most =
      std::min<uint64_t>(kStepsMin + uint64_t{kStepsPerByte} * text.size(), UINT32_MAX);
  if (++scratch.matches_ % kMatchesPerLook == 0) scratch.check_time(pattern_, text.size());
  int result = PCRE2_ERROR_NOMATCH;
  for (size_t begin = from; result == PCRE2_ERROR_NOMATCH && begin <= text.size();) {
    if (begin > from) scratch.check_time(pattern_, text.size());
    size_t next = std::min(begin + kPlacesAtOnce, text.size() + 1);
    while (next < text.size() && (text[next] & 0xC0) == 0x80) ++next;  // to a character's beginning
    pcre2_set_offset_limit(scratch.context_.get(), next - 1);
    result = PCRE2_ERROR_MATCHLIMIT;
    for (uint64_t steps = kStepsFirst; result == PCRE2_ERROR_MATCHLIMIT; steps *= 2) {
      if (steps > kStepsFirst) scratch.check_time(pattern_, text.size());
      pcre2_set_match_limit(scratch.context_.get(),
                            static_cast<uint32_t>(std::min<uint64_t>(steps, most)));
      result = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                           begin, PCRE2_NO_UTF_CHECK, scratch.data_.get(), scratch.context_.get());
      if (steps >= most) break;
    }
    begin = next;
  }
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result < 0) {
    throw Error(Code::kInvalidArgument, "cannot tokenize a text of " + std::to_string(text.size()) +
                                            " bytes: the pre-tokenizer's pattern " + pattern_ +
                                            " gave up (" + message_of(result) +
                                            "); send a shorter or a less repetitive text");
  }
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(scratch.data_.get());
  CHECK(from <= span[0] && span[0] <= span[1] && span[1] <= text.size(),
        "a match lies in the text");
  return RegexMatch{span[0], span[1]};
}

}  // namespace trireme

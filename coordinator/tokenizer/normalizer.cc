// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/normalizer.h"

#include "coordinator/tokenizer/nfc.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

// A text may grow by each step; the known ones put three bytes in place of one, once.
constexpr size_t kStepsMax = 8;
constexpr size_t kInsertedBytesMax = 8;
constexpr size_t kGrowthMax = 16;

std::string replace(std::string_view text, const std::string& what, const std::string& by) {
  std::string result;
  size_t done = 0;
  for (size_t at; (at = text.find(what, done)) != text.npos; done = at + what.size()) {
    result.append(text, done, at - done);
    result += by;
  }
  return result.append(text, done);
}

}  // namespace

void Normalizer::add(Step step) {
  std::string wrong;
  if (steps_.size() == kStepsMax) wrong = "more than " + std::to_string(kStepsMax) + " steps";
  if (step.kind == Kind::kReplacement && step.what.empty()) wrong = "a replacement of nothing";
  if (step.by.size() > kInsertedBytesMax) {
    wrong = "a step that puts in " + std::to_string(step.by.size()) + " bytes, at most " +
            std::to_string(kInsertedBytesMax) + " are taken";
  }
  if (!wrong.empty()) {
    throw Error(Code::kInvalidArgument,
                "cannot load the tokenizer of " + file_ + ": its normalizer has " + wrong);
  }
  steps_.push_back(std::move(step));
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc: result = to_nfc(result); break;
      case Kind::kNfkc: result = to_nfkc(result); break;
      case Kind::kPrefix:
        if (!result.empty()) result.insert(0, step.by);
        break;
      case Kind::kReplacement: result = replace(result, step.what, step.by); break;
    }
    if (result.size() > kGrowthMax * (text.size() + kInsertedBytesMax)) {
      throw Error(Code::kInvalidArgument, "cannot tokenize a text of " +
                                              std::to_string(text.size()) +
                                              " bytes: the normalizer of " + file_ + " made " +
                                              std::to_string(result.size()) +
                                              " of them; use the checkpoint's own tokenizer");
    }
  }
  return result;
}

}  // namespace trireme

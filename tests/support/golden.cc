// SPDX-License-Identifier: Apache-2.0
#include "tests/support/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

namespace trireme {
namespace {

constexpr double kBf16PromptError = 2e-2;  // relative norm over a prompt
constexpr double kBf16RowError = 4e-2;     // relative norm of a row

struct Difference {
  double max_abs = 0;
  double square = 0;
  double reference_square = 0;
  void add(std::span<const float> row, const float* reference) {
    for (size_t index = 0; index < row.size(); ++index) {
      const double delta = double{row[index]} - reference[index];
      max_abs = std::max(max_abs, std::fabs(delta));
      square += delta * delta;
      reference_square += double{reference[index]} * reference[index];
    }
  }
  double relative() const { return std::sqrt(square / reference_square); }
};

}  // namespace

std::vector<int32_t> forced_tokens(const ReferencePrompt& prompt) {
  std::vector<int32_t> tokens = prompt.prompt;
  // The last greedy token is drawn from the row before it and never fed.
  if (!prompt.greedy.empty()) {
    tokens.insert(tokens.end(), prompt.greedy.begin(), prompt.greedy.end() - 1);
  }
  return tokens;
}

double compare_logits(const ReferencePrompt& prompt, const Logits& logits, bool fp32) {
  const auto length = static_cast<int32_t>(prompt.prompt.size());
  Difference whole;
  const auto compare_row = [&](int32_t position, const float* reference) {
    const std::vector<float>& row = logits.at({kGoldenSequence, position});
    Difference one;
    one.add(row, reference);
    whole.add(row, reference);
    if (fp32) {
      EXPECT_LE(one.max_abs, kFp32Error) << "position " << position;
    } else {
      EXPECT_LE(one.relative(), kBf16RowError) << "position " << position;
    }
  };
  const std::vector<float>& last = logits.at({kGoldenSequence, length - 1});
  if (!prompt.all_logits.empty()) {
    for (int32_t position = 0; position < length; ++position) {
      compare_row(position, prompt.all_logits.data() + static_cast<size_t>(position) * last.size());
    }
  } else if (!prompt.last_logits.empty()) {
    compare_row(length - 1, prompt.last_logits.data());
  }
  EXPECT_FALSE(prompt.top_ids.empty());
  for (size_t index = 0; index < prompt.top_ids.size() && fp32; ++index) {
    EXPECT_NEAR(last[static_cast<size_t>(prompt.top_ids[index])], prompt.top_logits[index],
                kFp32Error);
  }
  if (!fp32 && whole.reference_square > 0) {
    EXPECT_LE(whole.relative(), kBf16PromptError);
  }
  return whole.max_abs;
}

int compare_greedy(const ReferencePrompt& prompt, const Logits& logits, double tolerance) {
  const auto length = static_cast<int32_t>(prompt.prompt.size());
  int compared = 0;
  for (size_t step = 0; step < prompt.greedy.size(); ++step) {
    if (prompt.margins[step] < tolerance) continue;
    const std::vector<float>& row =
        logits.at({kGoldenSequence, length - 1 + static_cast<int32_t>(step)});
    const auto best = std::max_element(row.begin(), row.end()) - row.begin();
    EXPECT_EQ(best, prompt.greedy[step]) << "step " << step;
    ++compared;
  }
  return compared;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "worker/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {
namespace {

DrawSpec draw_spec(float temperature, float top_p, int32_t top_k, uint64_t seed) {
  DrawSpec spec;
  spec.set_temperature(temperature);
  spec.set_top_p(top_p);
  spec.set_top_k(top_k);
  spec.set_seed(seed);
  return spec;
}

std::vector<float> random_logits(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

int32_t draw(const std::vector<float>& logits, const DrawSpec& spec, int32_t position,
             int32_t logical = 0) {
  Sampler sampler(logical > 0 ? logical : static_cast<int32_t>(logits.size()));
  SampledToken token;
  sampler.draw(logits, spec, position, token);
  return token.token();
}

// The distribution that a spec describes, computed the slow way.
std::vector<double> expected_distribution(const std::vector<float>& logits, const DrawSpec& spec) {
  std::vector<std::pair<double, size_t>> order;
  for (size_t id = 0; id < logits.size(); ++id) order.emplace_back(-double{logits[id]}, id);
  std::sort(order.begin(), order.end());
  if (spec.top_k() > 0) order.resize(std::min(order.size(), static_cast<size_t>(spec.top_k())));
  std::vector<double> weights;
  double total = 0;
  for (const auto& [negative, id] : order) {
    weights.push_back(std::exp(-negative / spec.temperature()));
    total += weights.back();
  }
  double kept = 0;
  size_t count = 0;
  while (count < weights.size() && kept < double{spec.top_p()} * total) kept += weights[count++];
  std::vector<double> distribution(logits.size(), 0.0);
  for (size_t index = 0; index < count; ++index) {
    distribution[order[index].second] = weights[index] / kept;
  }
  return distribution;
}

TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<float> logits = random_logits(50, 1);
  for (const DrawSpec& spec : {draw_spec(1, 1, 0, 11), draw_spec(0.7f, 1, 5, 12),
                               draw_spec(1.3f, 0.8f, 0, 13), draw_spec(1, 0.9f, 20, 14)}) {
    const std::vector<double> expected = expected_distribution(logits, spec);
    constexpr int kDraws = 100000;
    std::vector<int> counts(logits.size(), 0);
    for (int position = 0; position < kDraws; ++position) {
      ++counts[static_cast<size_t>(draw(logits, spec, position))];
    }
    double chi_square = 0;
    int freedom = -1;
    for (size_t id = 0; id < logits.size(); ++id) {
      if (expected[id] == 0) {
        EXPECT_EQ(counts[id], 0) << id;
        continue;
      }
      const double mean = expected[id] * kDraws;
      chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
      ++freedom;
    }
    // Mean k, variance 2k: five standard deviations.
    EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2.0 * freedom) + 5);
  }
}

TEST(Sampler, ADrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits = random_logits(1000, 2);
  std::set<int32_t> tokens;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const int32_t token = draw(logits, draw_spec(1, 1, 0, seed), 7);
    EXPECT_EQ(token, draw(logits, draw_spec(1, 1, 0, seed), 7));
    tokens.insert(token);
  }
  EXPECT_GT(tokens.size(), 5u);
}

TEST(Sampler, GreedyTakesTheBestAndTheLowerIdOfEquals) {
  EXPECT_EQ(draw({0, 3, 1, 3}, draw_spec(0, 1, 0, 0), 0), 1);
  EXPECT_EQ(draw({0, 3, 1, 3}, draw_spec(1, 1, 1, 5), 0), 1);
  EXPECT_EQ(draw({0, 3, 1, 3.5f}, draw_spec(0.01f, 1e-6f, 0, 5), 0), 3);
}

TEST(Sampler, PaddingRowsAreNeverDrawn) {
  std::vector<float> logits(64, 0.0f);
  for (size_t id = 40; id < 64; ++id) logits[id] = 50;
  for (int position = 0; position < 1000; ++position) {
    EXPECT_LT(draw(logits, draw_spec(1, 1, 0, 3), position, 40), 40);
  }
  EXPECT_LT(draw(logits, draw_spec(0, 1, 0, 3), 0, 40), 40);
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const std::vector<float> logits = random_logits(100, 4);
  DrawSpec spec = draw_spec(2, 0.5f, 3, 9);
  spec.set_logprobs(5);
  Sampler sampler(100);
  SampledToken token;
  sampler.draw(logits, spec, 0, token);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  ASSERT_EQ(token.logprobs_size(), 5);
  for (int index = 0; index < 5; ++index) {
    const TokenLogprob& entry = token.logprobs(index);
    EXPECT_NEAR(entry.logprob(), logits[static_cast<size_t>(entry.id())] - std::log(sum), 1e-5);
    if (index > 0) {
      EXPECT_LE(entry.logprob(), token.logprobs(index - 1).logprob());
    }
  }
}

TEST(Sampler, LogitsThatAreNotFiniteAreAnError) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_THROW(draw({0, bad, 1}, draw_spec(1, 1, 0, 0), 0), Error);
  }
}

}  // namespace
}  // namespace trireme

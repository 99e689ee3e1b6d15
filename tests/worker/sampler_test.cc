// SPDX-License-Identifier: Apache-2.0
// What the sampler keeps and how it weighs it, against the reference library's own distributions
// (tests/data/make_sampling_cases.py); how it draws from that; and what it refuses.
#include "worker/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  std::string name;  // all of it, for messages
  std::vector<float> logits;
  DrawSpec spec;
  std::vector<int32_t> history;
  int32_t logical = 0;
  std::map<int32_t, double> expected;  // the probability of each id that is left
};

DrawSpec spec_of(const json& from, size_t num_prompt) {
  DrawSpec spec;
  spec.set_temperature(from["temperature"]);
  spec.set_top_k(from["top_k"]);
  spec.set_top_p(from["top_p"]);
  spec.set_min_p(from["min_p"]);
  spec.set_repetition_penalty(from["repetition_penalty"]);
  spec.set_frequency_penalty(from["frequency_penalty"]);
  spec.set_presence_penalty(from["presence_penalty"]);
  spec.set_num_prompt(static_cast<int32_t>(num_prompt));
  for (const auto& [id, bias] : from["logit_bias"].items()) {
    spec.add_bias_ids(std::stoi(id));
    spec.add_biases(bias);
  }
  for (const json& id : from["banned_ids"]) spec.add_banned_ids(id);
  return spec;
}

std::vector<Case> read_cases() {
  std::ifstream file(TRIREME_SOURCE_DIR "/tests/data/sampling_cases.json");
  const json document = json::parse(file);
  std::vector<Case> cases;
  for (const json& from : document["cases"]) {
    Case& one = cases.emplace_back();
    one.name = from.dump();
    for (const json& logit : document["logits"][from["logits"]]) {
      one.logits.push_back(logit.is_null() ? -kInf : logit.get<float>());
    }
    one.history = from["prompt"].get<std::vector<int32_t>>();
    one.spec = spec_of(from, one.history.size());
    for (const json& id : from["output"]) one.history.push_back(id);
    one.logical = from["logical"];
    for (const auto& [id, value] : from["expected"].items()) one.expected[std::stoi(id)] = value;
  }
  return cases;
}

TEST(SamplerReference, KeepsTheSameIdsWithTheSameProbabilities) {
  const std::vector<Case> cases = read_cases();
  ASSERT_GT(cases.size(), 200u);
  for (const Case& one : cases) {
    Sampler sampler(one.logical);
    std::map<int32_t, double> kept;
    double total = 0;
    for (const auto& [weight, id] : sampler.candidates(one.logits, one.spec, one.history)) {
      if (weight > 0) kept[id] = weight;
      total += weight;
    }
    for (const auto& [id, probability] : one.expected) {
      ASSERT_TRUE(kept.contains(id)) << id << " is not kept: " << one.name;
      EXPECT_NEAR(kept[id] / total, probability, 1e-8) << id << ": " << one.name;
    }
    EXPECT_EQ(kept.size(), one.expected.size()) << one.name;
  }
}

// How far a chi-square of so many degrees of freedom is from its mean, in standard deviations
// (Wilson and Hilferty 1931).
double deviation(double chi_square, int freedom) {
  const double variance = 2.0 / (9 * freedom);
  return (std::cbrt(chi_square / freedom) - (1 - variance)) / std::sqrt(variance);
}

TEST(SamplerReference, DrawsFollowTheDistribution) {
  constexpr int kDraws = 100000;
  constexpr double kLeastMean = 5;  // of a bin: rarer ids share one
  int compared = 0;
  uint64_t seed = 1;
  for (Case& one : read_cases()) {
    one.spec.set_seed(seed++);
    Sampler sampler(one.logical);
    std::vector<int> counts(one.logits.size(), 0);
    for (int position = 0; position < kDraws; ++position) {
      SampledToken token;
      sampler.draw(one.logits, one.spec, position, one.history, token);
      ++counts[static_cast<size_t>(token.token())];
    }
    double chi_square = 0, rare_mean = 0;
    int freedom = -1, rare_count = 0, seen = 0;
    const auto add = [&](double mean, int count) {
      chi_square += (count - mean) * (count - mean) / mean;
      ++freedom;
    };
    for (const auto& [id, probability] : one.expected) {
      const double mean = probability * kDraws;
      const int count = counts[static_cast<size_t>(id)];
      seen += count;
      if (mean >= kLeastMean) {
        add(mean, count);
      } else {
        rare_mean += mean;
        rare_count += count;
      }
    }
    if (rare_mean >= kLeastMean) add(rare_mean, rare_count);
    EXPECT_EQ(seen, kDraws) << "an id was drawn that is not kept: " << one.name;
    if (freedom < 1) continue;
    ++compared;
    EXPECT_LT(deviation(chi_square, freedom), 3.09)  // p > 1e-3
        << chi_square << " with " << freedom << " degrees of freedom: " << one.name;
  }
  EXPECT_GE(compared, 140);
}

std::vector<float> random_logits(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

DrawSpec plain_spec(double temperature, uint64_t seed = 0) {
  DrawSpec spec;
  spec.set_temperature(temperature);
  spec.set_top_p(1);
  spec.set_seed(seed);
  return spec;
}

int32_t draw(const std::vector<float>& logits, const DrawSpec& spec, int32_t position,
             int32_t logical = 0) {
  Sampler sampler(logical > 0 ? logical : static_cast<int32_t>(logits.size()));
  SampledToken token;
  sampler.draw(logits, spec, position, {}, token);
  return token.token();
}

// The slow way, for vocabularies in which the fast one takes other paths than in small ones.
std::vector<int32_t> sorted_cut(const std::vector<float>& logits, const DrawSpec& spec) {
  std::vector<std::pair<double, int32_t>> order;
  for (size_t id = 0; id < logits.size(); ++id) {
    order.emplace_back(-double{logits[id]}, static_cast<int32_t>(id));
  }
  std::sort(order.begin(), order.end());
  if (spec.top_k() > 0) {
    const double least = order[static_cast<size_t>(spec.top_k()) - 1].first;
    std::erase_if(order, [least](const auto& one) { return one.first > least; });
  }
  const auto weight = [&](const auto& one) {
    return std::exp((order[0].first - one.first) / spec.temperature());
  };
  double total = 0, better = 0;
  for (const auto& one : order) total += weight(one);
  std::vector<int32_t> kept;
  for (const auto& one : order) {
    if (better >= spec.top_p() * total) break;
    better += weight(one);
    if (weight(one) >= spec.min_p()) kept.push_back(one.second);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

TEST(Sampler, CutsLargeVocabulariesLikeASort) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    std::vector<float> logits = random_logits(5000, random());
    if (round % 3 == 0) {
      for (float& logit : logits) logit = std::round(logit * 4) / 4;  // many equals
    }
    DrawSpec spec = plain_spec(round % 2 == 0 ? 1 : 0.4 + random() % 100);
    const std::vector<int32_t> ks{0, 1, 40, 1024, 1025, 4999, 5000};
    spec.set_top_k(ks[random() % ks.size()]);
    const std::vector<double> ps{1, 0.999, 0.9, 0.5, 0.01, 1e-300};
    spec.set_top_p(ps[random() % ps.size()]);
    spec.set_min_p(round % 4 == 1 ? 0.01 : 0);
    Sampler sampler(5000);
    std::vector<int32_t> kept;
    for (const auto& one : sampler.candidates(logits, spec, {})) kept.push_back(one.id);
    EXPECT_EQ(kept, sorted_cut(logits, spec)) << spec.ShortDebugString();
  }
}

TEST(Sampler, ADrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits = random_logits(1000, 2);
  std::set<int32_t> tokens;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const int32_t token = draw(logits, plain_spec(1, seed), 7);
    EXPECT_EQ(token, draw(logits, plain_spec(1, seed), 7));
    tokens.insert(token);
  }
  EXPECT_GT(tokens.size(), 5u);
}

TEST(Sampler, AnswersDrawApartAndTheFirstAsIfAlone) {
  std::set<uint64_t> seeds;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
    EXPECT_EQ(seed_of_answer(seed, 0), seed);
    for (int32_t index = 0; index < 128; ++index) seeds.insert(seed_of_answer(seed, index));
  }
  EXPECT_EQ(seeds.size(), 3u * 128);
}

TEST(Sampler, GreedyTakesTheBestAndTheLowerIdOfEquals) {
  EXPECT_EQ(draw({0, 3, 1, 3}, plain_spec(0), 0), 1);
  DrawSpec narrow = plain_spec(1, 5);
  narrow.set_top_p(1e-300);
  EXPECT_EQ(draw({0, 3, 1, 3}, narrow, 0), 1);
  EXPECT_EQ(draw({0, 3, 1, 3.5f}, plain_spec(1e-300, 5), 0), 3);
}

TEST(Sampler, PaddingRowsAreNeverDrawn) {
  std::vector<float> logits(64, 0.0f);
  for (size_t id = 40; id < 64; ++id) logits[id] = 50;
  DrawSpec biased = plain_spec(1, 3);
  biased.add_bias_ids(41);
  biased.add_biases(100);
  for (int position = 0; position < 1000; ++position) {
    EXPECT_LT(draw(logits, plain_spec(1, 3), position, 40), 40);
    EXPECT_LT(draw(logits, biased, position, 40), 40);
  }
  EXPECT_LT(draw(logits, plain_spec(0), 0, 40), 40);
  // Nor do they disturb, standing in a prompt.
  DrawSpec penalised = plain_spec(0);
  penalised.set_repetition_penalty(2);
  Sampler sampler(40);
  SampledToken token;
  sampler.draw(logits, penalised, 3, std::vector<int32_t>{63, 41, 63}, token);
  EXPECT_EQ(token.token(), 0);
}

// The sampler keeps scratch between draws: none of it may be left over.
TEST(Sampler, OneDrawLeavesNothingForTheNext) {
  const std::vector<Case> cases = read_cases();
  Sampler shared(38);
  for (const Case& one : cases) {
    Sampler fresh(38);
    SampledToken mine, theirs;
    shared.draw(one.logits, one.spec, 5, one.history, mine);
    fresh.draw(one.logits, one.spec, 5, one.history, theirs);
    EXPECT_EQ(mine.token(), theirs.token()) << one.name;
  }
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const std::vector<float> logits = random_logits(100, 4);
  DrawSpec spec = plain_spec(2, 9);
  spec.set_top_k(3);
  spec.set_presence_penalty(2);
  spec.add_bias_ids(7);
  spec.add_biases(50);
  spec.set_logprobs(5);
  Sampler sampler(100);
  SampledToken token;
  sampler.draw(logits, spec, 2, std::vector<int32_t>{1, 7}, token);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  ASSERT_EQ(token.token(), 7);
  EXPECT_NEAR(token.logprob(), logits[7] - std::log(sum), 1e-5);
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
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
    for (const double temperature : {0.0, 1.0}) {
      EXPECT_THROW(draw({0, bad, 1}, plain_spec(temperature), 0), Error);
      EXPECT_THROW(draw({0, 1, bad}, plain_spec(temperature), 0, 2), Error);  // a padding row
    }
  }
  EXPECT_THROW(draw({-kInf, -kInf}, plain_spec(1), 0), Error);
  EXPECT_EQ(draw({-kInf, 1}, plain_spec(1), 0), 1);
}

TEST(Sampler, SpecsThatNoServiceSendsAreErrors) {
  const auto refused = [](const std::function<void(DrawSpec&)>& spoil) {
    DrawSpec spec = plain_spec(1);
    spoil(spec);
    try {
      draw({0, 1, 2}, spec, 0);
      ADD_FAILURE() << "was taken: " << spec.ShortDebugString();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInvalidArgument) << error.what();
    }
  };
  refused([](DrawSpec& spec) { spec.set_temperature(kNan); });
  refused([](DrawSpec& spec) { spec.set_temperature(-1); });
  refused([](DrawSpec& spec) { spec.set_top_p(0); });
  refused([](DrawSpec& spec) { spec.set_top_p(kNan); });
  refused([](DrawSpec& spec) { spec.set_min_p(1.5); });
  refused([](DrawSpec& spec) { spec.set_min_p(kNan); });
  refused([](DrawSpec& spec) { spec.set_repetition_penalty(-1); });
  refused([](DrawSpec& spec) { spec.set_frequency_penalty(double{kInf}); });
  refused([](DrawSpec& spec) { spec.set_presence_penalty(kNan); });
  refused([](DrawSpec& spec) { spec.set_logprobs(-1); });
  refused([](DrawSpec& spec) { spec.add_bias_ids(1); });
  refused([](DrawSpec& spec) { spec.add_biases(1); });
  for (const int32_t id : {-1, 3}) {
    refused([id](DrawSpec& spec) { spec.add_banned_ids(id); });
    refused([id](DrawSpec& spec) {
      spec.add_bias_ids(id);
      spec.add_biases(1);
    });
  }
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// A GPU draws what the host's sampler draws: on one, or on the emulation.
#include "worker/device_sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "worker/sampler.h"

namespace trireme {
namespace {

class DeviceSamplerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_devices().devices.empty()) GTEST_SKIP() << "there is no GPU";
    backend_ = make_backend({.device = "cuda"});
  }
  // Rows of `cols` logits on the device, in a buffer of their own.
  Tensor upload(const std::vector<float>& logits, int64_t cols) {
    buffer_ = backend_->allocate(logits.size() * sizeof(float));
    backend_->upload(buffer_.data(), logits.data(), logits.size() * sizeof(float));
    return {buffer_.data(), DType::kF32, static_cast<int64_t>(logits.size()) / cols, cols};
  }
  std::unique_ptr<Backend> backend_;
  Buffer buffer_;
};

// Some round, so that logits are equal; some banned by what they are.
std::vector<float> random_logits(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<size_t>(count));
  const bool coarse = random() % 2 == 0;
  for (float& logit : logits) {
    logit = coarse ? std::round(normal(random)) : normal(random);
    if (random() % 50 == 0) logit = -INFINITY;
  }
  return logits;
}

DrawSpec random_spec(std::mt19937& random, int32_t vocab) {
  const auto one_in = [&](uint32_t n) { return random() % n == 0; };
  const auto fraction = [&] { return static_cast<double>(random() % 1000) / 1000; };
  const auto id = [&] { return static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)); };
  DrawSpec spec;
  spec.set_seed(random());
  spec.set_temperature(one_in(5) ? 0 : 0.1 + 2 * fraction());
  spec.set_top_p(one_in(3) ? 1 : one_in(4) ? 1e-9 : 0.001 + 0.999 * fraction());
  if (one_in(2)) spec.set_top_k(static_cast<int32_t>(1 + random() % static_cast<uint32_t>(vocab)));
  if (one_in(3)) spec.set_min_p(fraction());
  if (one_in(3)) spec.set_repetition_penalty(0.5 + fraction());
  if (one_in(3)) spec.set_frequency_penalty(fraction() - 0.5);
  if (one_in(3)) spec.set_presence_penalty(fraction() - 0.5);
  spec.set_num_prompt(static_cast<int32_t>(random() % 20));
  for (uint32_t n = random() % 4; n > 0; --n) {
    spec.add_bias_ids(id());
    spec.add_biases(10 * fraction() - 5);
  }
  for (uint32_t n = random() % 4; n > 0; --n) spec.add_banned_ids(id());
  return spec;
}

TEST_F(DeviceSamplerTest, DrawsWhatTheHostDraws) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto vocab = static_cast<int32_t>(2 + random() % 1500);
    const auto logical = static_cast<int32_t>(vocab - random() % 2);
    const auto rows = static_cast<int64_t>(1 + random() % 5);
    const std::vector<float> logits = random_logits(random, rows * vocab);
    Sampler host(logical);
    DeviceSampler device(*backend_, logical);
    std::vector<int32_t> expected;
    bool possible = true;
    for (int64_t row = 0; row < rows; ++row) {
      const DrawSpec spec = random_spec(random, vocab);
      std::vector<int32_t> history(random() % 40);
      for (int32_t& id : history)
        id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
      SampledToken token;
      try {
        host.draw({logits.data() + row * vocab, static_cast<size_t>(vocab)}, spec, 7, history,
                  token);
      } catch (const Error&) {
        possible = false;
      }
      expected.push_back(token.token());
      device.add(spec, vocab, 7, history);
    }
    const Tensor uploaded = upload(logits, vocab);
    if (!possible) {
      EXPECT_THROW(device.draw_all(uploaded), Error);
      continue;
    }
    const auto drawn = device.draw_all(uploaded);
    EXPECT_EQ(std::vector<int32_t>(drawn.begin(), drawn.end()), expected);
  }
}

// Rows whose scores nothing changes: of equals the lowest id, wherever they stand, however rows
// lie.
TEST_F(DeviceSamplerTest, TheBestIsTheLowestIdOfEquals) {
  DrawSpec greedy;
  greedy.set_top_p(1);
  for (const int32_t vocab : {1, 2, 3, 1000, 4095, 4097, 40000, 65024}) {
    SCOPED_TRACE("vocabulary of " + std::to_string(vocab));
    std::mt19937 random(static_cast<uint32_t>(vocab));
    const int32_t logical = vocab - (vocab > 2 ? 2 : 0);
    constexpr int64_t kRows = 5;
    std::vector<float> logits = random_logits(random, kRows * vocab);
    const auto row = [&](int64_t index) { return logits.data() + index * vocab; };
    const auto any = [&] { return random() % static_cast<uint32_t>(logical); };
    for (int i = 0; i < 20; ++i) row(1)[any()] = 100;  // of equals, in any order
    for (int32_t id = 0; id < vocab; ++id) row(2)[id] = id % 2 == 0 ? -0.0f : 0.0f;
    for (int32_t id = 0; id < vocab; ++id) row(3)[id] = -INFINITY;
    row(3)[any()] = -std::numeric_limits<float>::max();
    for (int32_t id = 0; id < vocab; ++id) row(4)[id] = -5 - static_cast<float>(id % 3);
    for (int32_t id = logical; id < vocab; ++id) row(1)[id] = row(4)[id] = 1000;  // never drawn
    Sampler host(logical);
    DeviceSampler device(*backend_, logical);
    std::vector<int32_t> expected;
    for (int64_t index = 0; index < kRows; ++index) {
      SampledToken token;
      host.draw({row(index), static_cast<size_t>(vocab)}, greedy, 7, {}, token);
      expected.push_back(token.token());
      device.add(greedy, vocab, 7, {});
    }
    const auto drawn = device.draw_all(upload(logits, vocab));
    EXPECT_EQ(std::vector<int32_t>(drawn.begin(), drawn.end()), expected);
  }
}

TEST_F(DeviceSamplerTest, DrawsFromLargeVocabularies) {
  constexpr int32_t kVocab = 70001;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> logits;
  Sampler host(kVocab - 1);
  DeviceSampler device(*backend_, kVocab - 1);
  std::vector<int32_t> expected;
  const auto add = [&](float spread, bool coarse, double top_p, int32_t top_k, double min_p) {
    const size_t first = logits.size();
    for (int32_t id = 0; id < kVocab; ++id) {
      const float logit = spread * normal(random);
      logits.push_back(coarse ? std::round(logit) : logit);
    }
    DrawSpec spec;
    spec.set_seed(random());
    spec.set_temperature(0.8);
    spec.set_top_p(top_p);
    spec.set_top_k(top_k);
    spec.set_min_p(min_p);
    SampledToken token;
    host.draw({logits.data() + first, static_cast<size_t>(kVocab)}, spec, 7, {}, token);
    expected.push_back(token.token());
    device.add(spec, kVocab, 7, {});
  };
  for (const float spread : {0.01f, 2.0f, 10.0f, 3000.0f}) {
    add(spread, false, 0.8, 0, 0);
    add(spread, false, 1, 50, 0);
    add(spread, false, 0.95, 40000, 0);
    add(spread, true, 0.5, 1000, 0);
    add(spread, true, 1, 0, 0.05);
  }
  const auto drawn = device.draw_all(upload(logits, kVocab));
  EXPECT_EQ(std::vector<int32_t>(drawn.begin(), drawn.end()), expected);
}

// Each draw of one distribution: the shares are those of its weights.
TEST_F(DeviceSamplerTest, SharesAreThoseOfTheWeights) {
  const std::vector<float> logits = {0, std::log(2.0f), -INFINITY, std::log(5.0f)};
  constexpr int kDraws = 200;
  std::vector<float> rows;
  DeviceSampler device(*backend_, 4);
  DrawSpec spec;
  spec.set_temperature(1);
  spec.set_top_p(1);
  for (int i = 0; i < kDraws; ++i) {
    rows.insert(rows.end(), logits.begin(), logits.end());
    device.add(spec, 4, i, {});
  }
  std::vector<int> count(4);
  for (const int32_t id : device.draw_all(upload(rows, 4))) ++count[static_cast<size_t>(id)];
  EXPECT_EQ(count[2], 0);
  EXPECT_NEAR(count[0], kDraws / 8.0, 15);
  EXPECT_NEAR(count[1], kDraws / 4.0, 20);
  EXPECT_NEAR(count[3], kDraws * 5 / 8.0, 25);
}

TEST_F(DeviceSamplerTest, RefusesWhatTheHostRefuses) {
  DrawSpec spec;
  spec.set_top_p(1);
  const auto fails = [&](std::vector<float> logits, const std::string& part,
                         const std::vector<int32_t>& history = {}) {
    DeviceSampler device(*backend_, 3);
    try {
      device.add(spec, 3, 0, history);
      device.draw_all(upload(logits, 3));
      ADD_FAILURE() << "no error that says " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  for (const double temperature : {0, 1}) {
    spec.set_temperature(temperature);
    fails({0, NAN, 1}, "are not finite");
    fails({0, INFINITY, 1}, "are not finite");
    fails({-INFINITY, -INFINITY, -INFINITY}, "no token");
    spec.set_repetition_penalty(1e-320);  // 1 / 1e-320 is beyond a double
    fails({0, 1, -1}, "no token", {1});
    spec.clear_repetition_penalty();
  }
  spec.add_banned_ids(3);
  fails({0, 1, 2}, "token 3");
}

}  // namespace
}  // namespace trireme

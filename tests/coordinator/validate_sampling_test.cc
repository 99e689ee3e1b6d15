// SPDX-License-Identifier: Apache-2.0
// The fields that say how tokens are drawn: their ranges, and what becomes of them.
#include <set>

#include "tests/coordinator/validate_fixture.h"

namespace trireme {
namespace {

using G = v1::GenerateRequest;

const std::vector<GenerateRow> kRows{
    {"negative temperature",
     [](G& r) { r.mutable_sampling()->set_temperature(-1); },
     kBad,
     {"sampling.temperature: ", "-1", "100"}},
    {"NaN temperature",
     [](G& r) { r.mutable_sampling()->set_temperature(kNan); },
     kBad,
     {"sampling.temperature: ", "nan"}},
    {"infinite temperature",
     [](G& r) { r.mutable_sampling()->set_temperature(kInf); },
     kBad,
     {"sampling.temperature: ", "inf"}},
    {"hot",
     [](G& r) { r.mutable_sampling()->set_temperature(100.5); },
     kBad,
     {"sampling.temperature: ", "100.5"}},
    {"top_p 0", [](G& r) { r.mutable_sampling()->set_top_p(0); }, kBad, {"sampling.top_p: "}},
    {"top_p above 1",
     [](G& r) { r.mutable_sampling()->set_top_p(1.01); },
     kBad,
     {"sampling.top_p: ", "1.01"}},
    {"top_p NaN", [](G& r) { r.mutable_sampling()->set_top_p(kNan); }, kBad, {"sampling.top_p: "}},
    {"negative top_k",
     [](G& r) { r.mutable_sampling()->set_top_k(-1); },
     kBad,
     {"sampling.top_k: ", "-1", "300"}},
    {"top_k over the vocabulary",
     [](G& r) { r.mutable_sampling()->set_top_k(301); },
     kBad,
     {"sampling.top_k: ", "301"}},
    {"negative min_p",
     [](G& r) { r.mutable_sampling()->set_min_p(-0.1); },
     kBad,
     {"sampling.min_p: found -0.1, allowed: 0 (off) to 1"}},
    {"min_p above 1",
     [](G& r) { r.mutable_sampling()->set_min_p(1.5); },
     kBad,
     {"sampling.min_p: found 1.5, allowed: 0 (off) to 1"}},
    {"min_p NaN",
     [](G& r) { r.mutable_sampling()->set_min_p(kNan); },
     kBad,
     {"sampling.min_p: found nan, allowed: 0 (off) to 1"}},
    {"repetition_penalty 0",
     [](G& r) { r.mutable_sampling()->set_repetition_penalty(0); },
     kBad,
     {"sampling.repetition_penalty: found 0, allowed: 0.01 to 10"}},
    {"repetition_penalty above",
     [](G& r) { r.mutable_sampling()->set_repetition_penalty(10.5); },
     kBad,
     {"sampling.repetition_penalty: found 10.5, allowed: 0.01 to 10"}},
    {"repetition_penalty NaN",
     [](G& r) { r.mutable_sampling()->set_repetition_penalty(kNan); },
     kBad,
     {"sampling.repetition_penalty: found nan, allowed: 0.01 to 10"}},
    {"frequency_penalty below",
     [](G& r) { r.mutable_sampling()->set_frequency_penalty(-2.5); },
     kBad,
     {"sampling.frequency_penalty: found -2.5, allowed: -2 to 2"}},
    {"frequency_penalty NaN",
     [](G& r) { r.mutable_sampling()->set_frequency_penalty(kNan); },
     kBad,
     {"sampling.frequency_penalty: found nan, allowed: -2 to 2"}},
    {"presence_penalty above",
     [](G& r) { r.mutable_sampling()->set_presence_penalty(2.5); },
     kBad,
     {"sampling.presence_penalty: found 2.5, allowed: -2 to 2"}},
    {"presence_penalty infinite",
     [](G& r) { r.mutable_sampling()->set_presence_penalty(kInf); },
     kBad,
     {"sampling.presence_penalty: found inf, allowed: -2 to 2"}},
    {"bias above",
     [](G& r) { (*r.mutable_sampling()->mutable_logit_bias())[3] = 100.5; },
     kBad,
     {"sampling.logit_bias[3]: found 100.5, allowed: -100 to 100"}},
    {"bias NaN",
     [](G& r) { (*r.mutable_sampling()->mutable_logit_bias())[3] = kNan; },
     kBad,
     {"sampling.logit_bias[3]: found nan, allowed: -100 to 100"}},
    {"bias of no token",
     [](G& r) { (*r.mutable_sampling()->mutable_logit_bias())[300] = 1; },
     kBad,
     {"sampling.logit_bias, a token id: found 300, allowed: 0 to 299"}},
    {"bias of a negative id",
     [](G& r) { (*r.mutable_sampling()->mutable_logit_bias())[-1] = 1; },
     kBad,
     {"sampling.logit_bias, a token id: found -1, allowed: 0 to 299"}},
    {"two bad biases",
     [](G& r) {
       (*r.mutable_sampling()->mutable_logit_bias())[9] = 200;
       (*r.mutable_sampling()->mutable_logit_bias())[4] = -200;
     },
     kBad,
     {"sampling.logit_bias[4]: found -200, allowed: -100 to 100"}},
    {"301 biases",
     [](G& r) {
       for (int id = 0; id <= 300; ++id) (*r.mutable_sampling()->mutable_logit_bias())[id] = 1;
     },
     kBad,
     {"sampling.logit_bias: found 301 entries, allowed: at most 300"}},
    {"negative min_tokens",
     [](G& r) { r.set_min_tokens(-1); },
     kBad,
     {"min_tokens: found -1, allowed: 0 to max_tokens, which is 27"}},
    {"min_tokens over max_tokens",
     [](G& r) {
       r.set_max_tokens(4);
       r.set_min_tokens(5);
     },
     kBad,
     {"min_tokens: found 5, allowed: 0 to max_tokens, which is 4"}},
    {"n 129", [](G& r) { r.set_n(129); }, kBad, {"n: found 129, allowed: 1 to 128"}},
    {"n 0", [](G& r) { r.set_n(0); }, kBad, {"n: found 0, allowed: 1 to 128"}},
    {"negative n", [](G& r) { r.set_n(-1); }, kBad, {"n: found -1, allowed: 1 to 128"}},
};

TEST(ValidateSampling, RefusesEveryBadField) {
  for (const GenerateRow& row : kRows) expect_refused(row, good_generate());
}

TEST(ValidateSampling, DrawsIdsAndSeeds) {
  const Fixture fixture;
  std::set<std::string> ids;
  std::set<uint64_t> seeds;
  for (int i = 0; i < 100; ++i) {
    const PreparedRequest prepared = prepare(good_generate(), fixture.model());
    EXPECT_EQ(prepared.request.id.size(), 32u);
    EXPECT_EQ(prepared.request.id.find_first_not_of("0123456789abcdef"), std::string::npos);
    ids.insert(prepared.request.id);
    seeds.insert(prepared.request.sampling.seed);
  }
  EXPECT_EQ(ids.size(), 100u);
  EXPECT_EQ(seeds.size(), 100u);
}

TEST(ValidateSampling, AnswersDifferInSeedAndIndexAlone) {
  v1::GenerateRequest request = good_generate();
  request.set_request_id("mine");
  request.set_n(3);
  request.set_min_tokens(2);
  request.mutable_sampling()->set_seed(11);
  const Fixture fixture;
  const PreparedRequest prepared = prepare(request, fixture.model());
  std::set<uint64_t> seeds;
  for (int32_t index = 0; index < 3; ++index) {
    const Request answer = prepared.answer(index);
    EXPECT_EQ(answer.index, index);
    EXPECT_EQ(answer.id, "mine");
    EXPECT_EQ(answer.prompt, prepared.request.prompt);
    seeds.insert(answer.sampling.seed);
    const GenerationOptions options = prepared.options(index);
    EXPECT_EQ(options.index, index);
    EXPECT_EQ(options.num_prompt, 5);
    EXPECT_EQ(options.min_tokens, 2);
    EXPECT_EQ(options.stop_ids, std::vector<int32_t>{kEos});
  }
  EXPECT_EQ(prepared.answer(0).sampling.seed, 11u);
  EXPECT_EQ(seeds.size(), 3u);
}

// Nothing could be drawn before min_tokens.
TEST(ValidateSampling, AVocabularyOfStopIdsHasNoMinTokens) {
  struct SmallTokenizer : ByteTokenizer {
    int32_t size() const override { return 3; }
  };
  const SmallTokenizer tokenizer;
  const Fixture fixture;
  const ServedModel model{fixture.spec, tokenizer, fixture.chat, kContext};
  v1::GenerateRequest request = good_generate();
  for (const int32_t id : {0, 1, 7}) request.add_stop_token_ids(id);
  request.set_min_tokens(2);
  EXPECT_EQ(prepare(request, model).request.sampling.min_tokens, 2);
  request.add_stop_token_ids(2);
  try {
    prepare(request, model);
    ADD_FAILURE() << "was taken";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "min_tokens: found 2, allowed: 0, for every token is one that stops");
  }
  request.set_min_tokens(0);
  EXPECT_EQ(prepare(request, model).request.sampling.min_tokens, 0);
}

TEST(ValidateSampling, TinyValuesStayAboveZero) {
  v1::GenerateRequest request = good_generate();
  request.mutable_sampling()->set_temperature(1e-300);
  request.mutable_sampling()->set_top_p(1e-300);
  const Fixture fixture;
  const PreparedRequest prepared = prepare(request, fixture.model());
  EXPECT_GT(prepared.request.sampling.temperature, 0);
  EXPECT_GT(prepared.request.sampling.top_p, 0);
  request.mutable_sampling()->set_temperature(0);
  EXPECT_EQ(prepare(request, fixture.model()).request.sampling.temperature, 0);
}

}  // namespace
}  // namespace trireme

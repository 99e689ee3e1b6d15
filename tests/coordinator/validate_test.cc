// SPDX-License-Identifier: Apache-2.0
#include "coordinator/validate.h"

#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/coordinator/validate_fixture.h"

namespace trireme {
namespace {

using G = v1::GenerateRequest;

const std::vector<GenerateRow> kGenerateRows{
    {"no prompt", [](G& r) { r.clear_prompt(); }, kBad, {"prompt: ", "neither"}},
    {"empty text", [](G& r) { r.set_text(""); }, kBad, {"text: ", "empty"}},
    {"no ids", [](G& r) { r.mutable_token_ids(); }, kBad, {"token_ids: ", "no token"}},
    {"text over the context",
     [](G& r) { r.set_text(std::string(32, 'a')); },
     kBad,
     {"text: ", "32 tokens", "at most 31"}},
    {"ids over the context",
     [](G& r) { r.mutable_token_ids()->mutable_ids()->Resize(100, 1); },
     kBad,
     {"token_ids: ", "100 tokens", "at most 31"}},
    {"text over the bytes",
     [](G& r) { r.set_text(std::string(kMaxPromptBytes + 1, 'a')); },
     kBad,
     {"text: ", "1048577 bytes", "1048576"}},
    {"text not UTF-8", [](G& r) { r.set_text("ab\xff"); }, kBad, {"text: ", "offset 2"}},
    {"negative id",
     [](G& r) { r.mutable_token_ids()->add_ids(-1); },
     kBad,
     {"token_ids.ids[0]: ", "-1", "299"}},
    {"id beyond the vocabulary",
     [](G& r) {
       r.mutable_token_ids()->add_ids(1);
       r.mutable_token_ids()->add_ids(300);
     },
     kBad,
     {"token_ids.ids[1]: ", "300", "299"}},
    {"max_tokens 0", [](G& r) { r.set_max_tokens(0); }, kBad, {"max_tokens: ", "found 0", "27"}},
    {"negative max_tokens", [](G& r) { r.set_max_tokens(-5); }, kBad, {"max_tokens: ", "-5"}},
    {"max_tokens over the context",
     [](G& r) { r.set_max_tokens(28); },
     kBad,
     {"max_tokens: ", "28", "1 to 27", "context 32", "prompt of 5"}},
    {"huge max_tokens",
     [](G& r) { r.set_max_tokens(std::numeric_limits<int32_t>::max()); },
     kBad,
     {"max_tokens: ", "2147483647"}},
    {"priority", [](G& r) { r.set_priority(0); }, kLacking, {"priority"}},
    {"17 stops",
     [](G& r) {
       for (int i = 0; i < 17; ++i) r.add_stop("x");
     },
     kBad,
     {"stop: ", "17", "16"}},
    {"empty stop",
     [](G& r) {
       r.add_stop("x");
       r.add_stop("");
     },
     kBad,
     {"stop[1]: ", "empty"}},
    {"long stop",
     [](G& r) { r.add_stop(std::string(257, 'x')); },
     kBad,
     {"stop[0]: ", "257", "256"}},
    {"stop not UTF-8", [](G& r) { r.add_stop("\xc3"); }, kBad, {"stop[0]: ", "offset 0"}},
    {"65 stop ids",
     [](G& r) { r.mutable_stop_token_ids()->Resize(65, 1); },
     kBad,
     {"stop_token_ids: ", "65", "64"}},
    {"stop id beyond the vocabulary",
     [](G& r) { r.add_stop_token_ids(300); },
     kBad,
     {"stop_token_ids[0]: ", "300"}},
    {"negative stop id",
     [](G& r) { r.add_stop_token_ids(-2); },
     kBad,
     {"stop_token_ids[0]: ", "-2"}},
    {"negative logprobs", [](G& r) { r.set_logprobs(-1); }, kBad, {"logprobs: ", "-1", "20"}},
    {"21 logprobs", [](G& r) { r.set_logprobs(21); }, kBad, {"logprobs: ", "21", "20"}},
    {"empty request id", [](G& r) { r.set_request_id(""); }, kBad, {"request_id: "}},
    {"long request id",
     [](G& r) { r.set_request_id(std::string(129, 'x')); },
     kBad,
     {"request_id: ", "129", "128"}},
    {"request id with a newline",
     [](G& r) { r.set_request_id("a\nb"); },
     kBad,
     {"request_id: ", "printable"}},
    {"much metadata",
     [](G& r) {
       for (int i = 0; i < 17; ++i) (*r.mutable_metadata())[std::to_string(i)] = "";
     },
     kBad,
     {"metadata: ", "17", "16"}},
    {"large metadata",
     [](G& r) { (*r.mutable_metadata())["k"] = std::string(513, 'x'); },
     kBad,
     {"metadata: ", "513", "512"}},
    {"a field of another version",
     [](G& r) { r.GetReflection()->MutableUnknownFields(&r)->AddVarint(99, 1); },
     kLacking,
     {"field number 99"}},
    {"such a field inside sampling",
     [](G& r) {
       v1::Sampling& sampling = *r.mutable_sampling();
       sampling.GetReflection()->MutableUnknownFields(&sampling)->AddVarint(77, 1);
     },
     kLacking,
     {"sampling.field number 77"}},
};

const std::vector<ChatRow>& tool_rows() {
  using C = v1::ChatRequest;
  static const std::vector<ChatRow> rows{
      {"name", [](C& r) { r.mutable_messages(0)->set_name("x"); }, kLacking, {"messages[0].name"}},
      {"name with a space",
       [](C& r) { r.mutable_messages(0)->set_name("a b"); },
       kBad,
       {"messages[0].name: ", "without spaces"}},
      {"a call of nothing",
       [](C& r) { r.mutable_messages(0)->add_tool_calls(); },
       kBad,
       {"messages[0].tool_calls[0].name: ", "0 bytes"}},
      {"a user's call",
       [](C& r) {
         v1::ToolCall& call = *r.mutable_messages(0)->add_tool_calls();
         call.set_name("f");
         call.set_arguments_json("{}");
       },
       kBad,
       {"messages[0].tool_calls: ", "\"assistant\" only"}},
      {"an assistant's call",
       [](C& r) {
         r.mutable_messages(0)->set_role("assistant");
         v1::ToolCall& call = *r.mutable_messages(0)->add_tool_calls();
         call.set_name("f");
         call.set_arguments_json("{}");
       },
       kLacking,
       {"messages[0].tool_calls: ", "(plain) has no tools"}},
      {"arguments that are no object",
       [](C& r) {
         v1::ToolCall& call = *r.mutable_messages(0)->add_tool_calls();
         call.set_name("f");
         call.set_arguments_json("[1]");
       },
       kBad,
       {"messages[0].tool_calls[0].arguments_json: ", "a list", "an object"}},
      {"an id with a question",
       [](C& r) { r.mutable_messages(0)->set_tool_call_id("x"); },
       kBad,
       {"messages[0].tool_call_id: ", "\"tool\" only"}},
      {"no tools", [](C& r) { r.set_tools_json("[]"); }, kBad, {"tools_json: ", "0 tools"}},
      {"tools_json",
       [](C& r) { r.set_tools_json(R"([{"name": "f"}])"); },
       kLacking,
       {"tools_json: ", "(plain) has no tools"}},
      {"tools_json that is no JSON",
       [](C& r) { r.set_tools_json("[{"); },
       kBad,
       {"tools_json: ", "at byte 3"}},
      {"a tool without a name",
       [](C& r) { r.set_tools_json(R"([{"name": "f"}, {"type": "function", "function": {}}])"); },
       kBad,
       {"tools_json[1].function.name: ", "nothing"}},
      {"two tools of one name",
       [](C& r) { r.set_tools_json(R"([{"name": "f"}, {"name": "f"}])"); },
       kBad,
       {"tools_json[1]: ", "tools_json[0]"}},
      {"a tool of another type",
       [](C& r) { r.set_tools_json(R"([{"type": "python", "function": {}}])"); },
       kBad,
       {"tools_json[0].type: ", "'python'"}},
      {"tools_json nested too deep",
       [](C& r) { r.set_tools_json(std::string(70, '[')); },
       kBad,
       {"tools_json: ", "nested"}},
  };
  return rows;
}

const std::vector<ChatRow>& chat_rows() {
  using C = v1::ChatRequest;
  static const std::vector<ChatRow> rows{
      {"no message", [](C& r) { r.clear_messages(); }, kBad, {"messages: ", "none"}},
      {"unknown role",
       [](C& r) { r.mutable_messages(0)->set_role("root"); },
       kBad,
       {"messages[0].role: ", "\"root\"", "\"user\""}},
      {"a tool's turn",
       [](C& r) { r.mutable_messages(0)->set_role("tool"); },
       kLacking,
       {"messages[0].role: ", "(plain) has no tools"}},
      {"no role",
       [](C& r) { r.add_messages()->set_content("x"); },
       kBad,
       {"messages[1].role: ", "found \"\""}},
      {"content not UTF-8",
       [](C& r) { r.mutable_messages(0)->set_content("\xe4\xb8"); },
       kBad,
       {"messages[0].content: ", "offset 0"}},
      {"content over the bytes",
       [](C& r) { r.mutable_messages(0)->set_content(std::string(kMaxPromptBytes + 1, 'a')); },
       kBad,
       {"messages: ", "1048577", "1048576"}},
      {"many messages",
       [](C& r) {
         for (int i = 0; i < kMaxMessages; ++i) r.add_messages();
       },
       kBad,
       {"messages: ", "1025", "1024"}},
      {"over the context",
       [](C& r) { r.mutable_messages(0)->set_content(std::string(40, 'a')); },
       kBad,
       {"messages: ", "41 tokens", "at most 31"}},
      {"negative temperature",
       [](C& r) { r.mutable_sampling()->set_temperature(-1); },
       kBad,
       {"sampling.temperature: "}},
      {"max_tokens over the context",
       [](C& r) { r.set_max_tokens(27); },
       kBad,
       {"max_tokens: ", "1 to 26"}},
      {"such a field inside a message",
       [](C& r) {
         v1::ChatMessage& message = *r.mutable_messages(0);
         message.GetReflection()->MutableUnknownFields(&message)->AddVarint(9, 1);
       },
       kLacking,
       {"messages[0].field number 9"}},
  };
  return rows;
}

TEST(Validate, RefusesEveryBadFieldOfGenerate) {
  for (const GenerateRow& row : kGenerateRows) expect_refused(row, good_generate());
}

TEST(Validate, RefusesEveryBadFieldOfChat) {
  for (const ChatRow& row : chat_rows()) expect_refused(row, good_chat());
  for (const ChatRow& row : tool_rows()) expect_refused(row, good_chat());
}

TEST(Validate, FillsInDefaults) {
  const Fixture fixture;
  const PreparedRequest prepared = prepare(good_generate(), fixture.model());
  EXPECT_EQ(prepared.request.prompt, (std::vector<int32_t>{'h', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(prepared.request.max_tokens, kContext - 5);
  EXPECT_EQ(prepared.request.sampling.temperature, 1);
  EXPECT_EQ(prepared.request.sampling.top_p, 1);
  EXPECT_EQ(prepared.request.sampling.top_k, 0);
  EXPECT_EQ(prepared.request.sampling.logprobs, 0);
  EXPECT_EQ(prepared.request.stop_ids, std::vector<int32_t>{kEos});
  EXPECT_TRUE(prepared.stop.empty());
  EXPECT_EQ(prepared.n, 1);
  const SamplingParams& sampling = prepared.request.sampling;
  EXPECT_EQ(sampling.min_p, 0);
  EXPECT_EQ(sampling.repetition_penalty, 1);
  EXPECT_EQ(sampling.frequency_penalty, 0);
  EXPECT_EQ(sampling.presence_penalty, 0);
  EXPECT_TRUE(sampling.logit_bias.empty());
  EXPECT_EQ(sampling.min_tokens, 0);
}

TEST(Validate, TakesTheEdgesOfEveryRange) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(0);
  request.mutable_token_ids()->mutable_ids()->Add(kVocab - 1);
  request.set_request_id(std::string(128, '~'));
  request.set_max_tokens(kContext - 2);
  request.set_logprobs(20);
  request.set_n(128);
  request.set_min_tokens(kContext - 2);
  request.mutable_sampling()->set_min_p(1);
  request.mutable_sampling()->set_repetition_penalty(0.01);
  request.mutable_sampling()->set_frequency_penalty(-2);
  request.mutable_sampling()->set_presence_penalty(2);
  for (int32_t id = 0; id < 300; ++id) {
    (*request.mutable_sampling()->mutable_logit_bias())[id] = id % 2 == 0 ? 100 : -100;
  }
  request.mutable_sampling()->set_temperature(100);
  request.mutable_sampling()->set_top_p(1);
  request.mutable_sampling()->set_top_k(kVocab);
  request.mutable_sampling()->set_seed(std::numeric_limits<uint64_t>::max());
  for (int i = 0; i < kMaxStops; ++i) request.add_stop(std::string(kMaxStopBytes, 'x'));
  request.mutable_stop_token_ids()->Resize(kMaxStopIds, kVocab - 1);
  (*request.mutable_metadata())["key"] = std::string(kMaxMetadataBytes, 'x');
  const Fixture fixture;
  const PreparedRequest prepared = prepare(request, fixture.model());
  EXPECT_EQ(prepared.request.prompt, (std::vector<int32_t>{0, kVocab - 1}));
  EXPECT_EQ(prepared.request.id, request.request_id());
  EXPECT_EQ(prepared.request.max_tokens, kContext - 2);
  EXPECT_EQ(prepared.request.sampling.temperature, 100);
  EXPECT_EQ(prepared.request.sampling.top_k, kVocab);
  EXPECT_EQ(prepared.request.sampling.logprobs, 20);
  EXPECT_EQ(prepared.request.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(prepared.stop.size(), static_cast<size_t>(kMaxStops));
  EXPECT_EQ(prepared.request.stop_ids.size(), static_cast<size_t>(kMaxStopIds) + 1);
  EXPECT_EQ(prepared.n, 128);
  const SamplingParams& sampling = prepared.request.sampling;
  EXPECT_EQ(sampling.min_tokens, kContext - 2);
  EXPECT_EQ(sampling.banned_ids, (std::vector<int32_t>{kEos, kVocab - 1}));
  EXPECT_EQ(sampling.min_p, 1);
  EXPECT_EQ(sampling.repetition_penalty, 0.01);
  EXPECT_EQ(sampling.frequency_penalty, -2);
  EXPECT_EQ(sampling.presence_penalty, 2);
  ASSERT_EQ(sampling.logit_bias.size(), 300u);
  EXPECT_EQ(sampling.logit_bias[7], (std::pair<int32_t, double>{7, -100}));
}

TEST(Validate, StopIdsOfTheModelAndOfTheChat) {
  const Fixture fixture;
  v1::ChatRequest chat = good_chat();
  EXPECT_EQ(prepare(chat, fixture.model()).request.stop_ids,
            (std::vector<int32_t>{kEos, kEndOfTurn}));
  chat.set_ignore_eos(true);
  chat.add_stop_token_ids(7);
  EXPECT_EQ(prepare(chat, fixture.model()).request.stop_ids, std::vector<int32_t>{7});
}

TEST(Validate, TokenizeAndDetokenize) {
  const Fixture fixture;
  v1::TokenizeRequest text;
  EXPECT_TRUE(tokenize(text, fixture.model()).empty());
  text.set_text("hi");
  EXPECT_EQ(tokenize(text, fixture.model()), (std::vector<int32_t>{'h', 'i'}));
  text.set_text("\xff");
  EXPECT_THROW(tokenize(text, fixture.model()), Error);
  text.set_text(std::string(kMaxPromptBytes + 1, 'a'));
  EXPECT_THROW(tokenize(text, fixture.model()), Error);

  v1::DetokenizeRequest ids;
  ids.add_token_ids('h');
  ids.add_token_ids(kEos);
  ids.add_token_ids('i');
  EXPECT_EQ(detokenize(ids, fixture.model()), "hi");
  ids.add_token_ids(kVocab);
  EXPECT_THROW(detokenize(ids, fixture.model()), Error);
}

}  // namespace
}  // namespace trireme

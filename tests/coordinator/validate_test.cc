// SPDX-License-Identifier: Apache-2.0
#include "coordinator/validate.h"

#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr int32_t kContext = 32;
constexpr int32_t kVocab = 300;
constexpr int32_t kEos = 257;
constexpr int32_t kEndOfTurn = 258;

// A byte is an id.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string bytes_of(int32_t id, bool) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : "";
  }
  bool is_special(int32_t id) const override { return id >= 256; }
  std::optional<int32_t> special(std::string_view) const override { return std::nullopt; }
  int32_t size() const override { return 260; }
};

class PlainChat final : public ChatFormat {
 public:
  explicit PlainChat(const Tokenizer& tokenizer) : ChatFormat(tokenizer) {
    stop_ids_ = {kEndOfTurn};
  }
  const char* name() const override { return "plain"; }
  std::vector<int32_t> render(std::span<const ChatTurn> turns) const override {
    std::vector<int32_t> ids;
    for (const ChatTurn& turn : turns) {
      const std::vector<int32_t> content = tokenizer_.encode(turn.content);
      ids.insert(ids.end(), content.begin(), content.end());
      ids.push_back(kEndOfTurn);
    }
    return ids;
  }
};

struct Fixture {
  ModelSpec spec;
  ByteTokenizer tokenizer;
  PlainChat chat{tokenizer};
  Fixture() {
    spec.set_vocab_size(kVocab);
    spec.add_stop_ids(kEos);
  }
  ServedModel model() const { return {spec, tokenizer, chat, kContext}; }
};

v1::GenerateRequest good_generate() {
  v1::GenerateRequest request;
  request.set_text("hello");
  return request;
}

v1::ChatRequest good_chat() {
  v1::ChatRequest request;
  v1::ChatMessage& message = *request.add_messages();
  message.set_role("user");
  message.set_content("hello");
  return request;
}

// What is wrong, the code, and what the message must hold: first the field's path.
template <class Message>
struct Row {
  const char* name;
  std::function<void(Message&)> spoil;
  Code code;
  std::vector<std::string> words;
};

using GenerateRow = Row<v1::GenerateRequest>;
using ChatRow = Row<v1::ChatRequest>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr Code kBad = Code::kInvalidArgument;
constexpr Code kLacking = Code::kUnimplemented;

template <class Message>
void expect_refused(const Row<Message>& row, Message message) {
  row.spoil(message);
  const Fixture fixture;
  try {
    prepare(message, fixture.model());
    FAIL() << row.name << ": was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), row.code) << row.name << ": " << error.what();
    EXPECT_EQ(std::string(error.what()).rfind(row.words.at(0), 0), 0u)
        << row.name << ": " << error.what();
    for (const std::string& word : row.words) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
          << row.name << ": \"" << word << "\" is missing: " << error.what();
    }
  }
}

using G = v1::GenerateRequest;

const std::vector<GenerateRow> kGenerateRows{
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
    {"min_p", [](G& r) { r.mutable_sampling()->set_min_p(0); }, kLacking, {"sampling.min_p"}},
    {"repetition_penalty",
     [](G& r) { r.mutable_sampling()->set_repetition_penalty(1); },
     kLacking,
     {"sampling.repetition_penalty"}},
    {"frequency_penalty",
     [](G& r) { r.mutable_sampling()->set_frequency_penalty(0); },
     kLacking,
     {"sampling.frequency_penalty"}},
    {"presence_penalty",
     [](G& r) { r.mutable_sampling()->set_presence_penalty(0); },
     kLacking,
     {"sampling.presence_penalty"}},
    {"logit_bias",
     [](G& r) { (*r.mutable_sampling()->mutable_logit_bias())[3] = 1; },
     kLacking,
     {"sampling.logit_bias"}},
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
    {"min_tokens", [](G& r) { r.set_min_tokens(0); }, kLacking, {"min_tokens"}},
    {"priority", [](G& r) { r.set_priority(0); }, kLacking, {"priority"}},
    {"n 2", [](G& r) { r.set_n(2); }, kLacking, {"n other than 1"}},
    {"n 0", [](G& r) { r.set_n(0); }, kBad, {"n: ", "found 0"}},
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

const std::vector<ChatRow>& chat_rows() {
  using C = v1::ChatRequest;
  static const std::vector<ChatRow> rows{
      {"no message", [](C& r) { r.clear_messages(); }, kBad, {"messages: ", "none"}},
      {"unknown role",
       [](C& r) { r.mutable_messages(0)->set_role("tool"); },
       kBad,
       {"messages[0].role: ", "\"tool\"", "\"user\""}},
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
      {"name", [](C& r) { r.mutable_messages(0)->set_name("x"); }, kLacking, {"messages[0].name"}},
      {"tool_calls",
       [](C& r) { r.mutable_messages(0)->add_tool_calls(); },
       kLacking,
       {"messages[0].tool_calls"}},
      {"tools_json", [](C& r) { r.set_tools_json("[]"); }, kLacking, {"tools_json"}},
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
}

TEST(Validate, FillsInDefaults) {
  const Fixture fixture;
  const PreparedRequest prepared = prepare(good_generate(), fixture.model());
  EXPECT_EQ(prepared.request.prompt, (std::vector<int32_t>{'h', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(prepared.request.max_tokens, kContext - 5);
  EXPECT_EQ(prepared.request.sampling.temperature, 1.0f);
  EXPECT_EQ(prepared.request.sampling.top_p, 1.0f);
  EXPECT_EQ(prepared.request.sampling.top_k, 0);
  EXPECT_EQ(prepared.request.sampling.logprobs, 0);
  EXPECT_EQ(prepared.request.stop_ids, std::vector<int32_t>{kEos});
  EXPECT_TRUE(prepared.stop.empty());
}

TEST(Validate, DrawsIdsAndSeeds) {
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

TEST(Validate, TakesTheEdgesOfEveryRange) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(0);
  request.mutable_token_ids()->mutable_ids()->Add(kVocab - 1);
  request.set_request_id(std::string(128, '~'));
  request.set_max_tokens(kContext - 2);
  request.set_logprobs(20);
  request.set_n(1);
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
  EXPECT_EQ(prepared.request.sampling.temperature, 100.0f);
  EXPECT_EQ(prepared.request.sampling.top_k, kVocab);
  EXPECT_EQ(prepared.request.sampling.logprobs, 20);
  EXPECT_EQ(prepared.request.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(prepared.stop.size(), static_cast<size_t>(kMaxStops));
  EXPECT_EQ(prepared.request.stop_ids.size(), static_cast<size_t>(kMaxStopIds) + 1);
}

// A double that is no float must stay inside the sampler's range.
TEST(Validate, TinyValuesStayAboveZero) {
  v1::GenerateRequest request = good_generate();
  request.mutable_sampling()->set_temperature(1e-300);
  request.mutable_sampling()->set_top_p(1e-300);
  const Fixture fixture;
  const PreparedRequest prepared = prepare(request, fixture.model());
  EXPECT_GT(prepared.request.sampling.temperature, 0.0f);
  EXPECT_GT(prepared.request.sampling.top_p, 0.0f);
  request.mutable_sampling()->set_temperature(0);
  EXPECT_EQ(prepare(request, fixture.model()).request.sampling.temperature, 0.0f);
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

// SPDX-License-Identifier: Apache-2.0
// A conversation with a tool over gRPC, in the formats that know tools: the workers say what such a
// model says, the client hears a call, answers it, and hears the rest.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/jinja/json.h"
#include "tests/coordinator/chat_templates.h"
#include "tests/coordinator/service_harness.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

const char* const kTools = R"([{"name": "get_weather", "description": "天气",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}])";
const char* const kArguments = R"({"city": "北京", "days": 3})";

struct Speech {
  std::string name;        // of the chat format
  std::string model;       // of tests/data
  std::string family;      // of its config
  std::string template_;   // beside the tokenizer, or empty
  std::string thinks;      // what it says first
  std::string mark;        // the special token between that and the call, or empty
  std::string call;        // as the model writes it
  std::string end;         // the special token that ends it
  std::string plain_text;  // of all that: what is no call
};

void PrintTo(const Speech& speech, std::ostream* out) { *out << speech.name; }

const Speech kSpeeches[] = {
    {"chatglm3", "tiny-chatglm3", "chatglm", "", "\n我查一下。", "<|assistant|>",
     "get_weather\n```python\ntool_call(city='北京', days=3)\n```", "<|observation|>",
     "我查一下。"},
    {"glm", "tiny-glm4-chat", "chatglm", "", "", "", std::string("get_weather\n") + kArguments,
     "<|observation|>", ""},
    {"qwen2.5", "tiny-qwen2", "qwen2", kHermes, "Let me see.", "",
     std::string("\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": ") + kArguments +
         "}\n</tool_call>",
     "<|im_end|>", "Let me see."},
};

class ServiceTools : public testing::TestWithParam<Speech> {
 protected:
  ServiceTools() {
    HarnessOptions options;
    options.path = test_data(GetParam().model);
    options.family = GetParam().family;
    options.context = 4096;
    if (!GetParam().template_.empty()) {
      for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
        folder_.write(file, read_whole(options.path + "/" + file));
      }
      folder_.write("chat_template.jinja", GetParam().template_);
      options.path = folder_.path();
    }
    harness_ = std::make_unique<Harness>(options);
    request_.set_tools_json(kTools);
    add_message("user", "北京天气?");
  }

  v1::ChatMessage& add_message(const std::string& role, const std::string& content) {
    v1::ChatMessage& message = *request_.add_messages();
    message.set_role(role);
    message.set_content(content);
    return message;
  }
  int32_t special(const std::string& text) const { return *harness_->tokenizer_->special(text); }
  void append(std::vector<int32_t>& ids, const std::string& text) const {
    const std::vector<int32_t> more = harness_->tokenizer_->encode(text);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  Seen chat() {
    grpc::ClientContext context;
    return read_all(*harness_->stub_->Chat(&context, request_));
  }

  TemporaryFolder folder_;
  std::unique_ptr<Harness> harness_;
  v1::ChatRequest request_;
};

TEST_P(ServiceTools, ACallIsHeardAnsweredAndSpokenAbout) {
  const Speech& speech = GetParam();
  ASSERT_EQ(harness_->chat_->name(), speech.name);
  std::vector<int32_t> said;
  append(said, speech.thinks);
  if (!speech.mark.empty()) said.push_back(special(speech.mark));
  append(said, speech.call);
  said.push_back(special(speech.end));
  harness_->workers_.say(said);
  const Seen called = chat();
  ASSERT_TRUE(called.status.ok()) << called.status.error_message();
  EXPECT_EQ(called.ids, said);
  EXPECT_EQ(called.text, speech.plain_text);
  ASSERT_EQ(called.finished->tool_calls_size(), 1);
  const v1::ToolCall call = called.finished->tool_calls(0);
  EXPECT_EQ(call.name(), "get_weather");
  EXPECT_EQ(jinja::parse_json(call.arguments_json()), jinja::parse_json(kArguments));
  EXPECT_EQ(called.finished->finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(called.finished->matched_stop(), std::to_string(special(speech.end)));

  // The call and its result go back; the ranks see them as the format writes them.
  *add_message("assistant", called.text).add_tool_calls() = call;
  add_message("tool", "22 度");
  said.clear();
  append(said, "\n北京 22 度。");
  said.push_back(harness_->chat_->stop_ids().front());
  harness_->workers_.say(said);
  const Seen told = chat();
  ASSERT_TRUE(told.status.ok()) << told.status.error_message();
  EXPECT_NE(told.text.find("北京 22 度。"), std::string::npos) << told.text;
  EXPECT_EQ(told.finished->tool_calls_size(), 0);
  ChatTurn turn{"assistant", speech.plain_text};
  turn.calls.push_back({"get_weather", jinja::parse_json(kArguments)});
  std::vector<int32_t> fed = harness_->chat_->render(
      {{{"user", "北京天气?"}, turn, {"tool", "22 度"}}, read_tools(kTools)});
  EXPECT_EQ(told.finished->usage().prompt_tokens(), static_cast<int>(fed.size()));
  fed.insert(fed.end(), said.begin(), said.end() - 1);
  EXPECT_EQ(harness_->workers_.fed(), fed);
}

TEST_P(ServiceTools, WhatIsNoCallIsText) {
  std::vector<int32_t> said;
  append(said, "get_weather\nsunny <tool_call>{\"name\"</tool_call>");
  said.push_back(harness_->chat_->stop_ids().front());
  harness_->workers_.say(said);
  const Seen seen = chat();
  ASSERT_TRUE(seen.status.ok()) << seen.status.error_message();
  EXPECT_EQ(seen.text, "get_weather\nsunny <tool_call>{\"name\"</tool_call>");
  EXPECT_EQ(seen.finished->tool_calls_size(), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, ServiceTools, testing::ValuesIn(kSpeeches), [](const auto& row) {
  std::string name = row.param.name;
  std::erase_if(name, [](char c) { return c == '.'; });
  return name;
});

TEST(ServiceTemplate, AModelOfAnUnknownFormatGeneratesAndSaysWhyItDoesNotChat) {
  const TemporaryFolder folder;
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    folder.write(file, read_whole(test_data("tiny-qwen2/") + file));
  }
  folder.write("chat_template.jinja", std::string(kPlainChatMl) + "{{ 'Sure:' }}");
  HarnessOptions options;
  options.path = folder.path();
  options.family = "qwen2";
  Harness harness(options);
  v1::ChatRequest chat;
  chat.add_messages()->set_role("user");
  chat.mutable_messages(0)->set_content("hi");
  grpc::ClientContext context;
  const Seen refused = read_all(*harness.stub_->Chat(&context, chat));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_NE(refused.status.error_message().find("the template has \"Sure:\""), std::string::npos)
      << refused.status.error_message();
  EXPECT_NE(refused.status.error_message().find("use Generate"), std::string::npos);
  v1::GenerateRequest request;
  request.set_text("hi");
  request.set_max_tokens(7);
  const Seen seen = generate(*harness.stub_, request);
  ASSERT_TRUE(seen.status.ok()) << seen.status.error_message();
  EXPECT_EQ(seen.ids, harness.workers_.continuation(harness.chat_->plain("hi"), 7));
}

}  // namespace
}  // namespace trireme

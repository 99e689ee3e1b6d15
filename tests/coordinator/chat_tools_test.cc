// SPDX-License-Identifier: Apache-2.0
// Prompts with tools. The ids of real ChatGLM prompts are those that the tests of chatglm.cpp list.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

using Ids = std::vector<int32_t>;
using Turns = std::vector<ChatTurn>;

const char* const kTools = R"([{"name": "get_weather", "description": "天气",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}])";

ChatTurn weather_call() {
  ChatTurn turn{"assistant", ""};
  turn.calls.push_back({"get_weather", jinja::parse_json(R"({"city": "北京", "days": 3})")});
  return turn;
}

struct Model {
  Model(const std::string& folder, const std::string& family)
      : tokenizer(load_tokenizer(folder, family)),
        chat(make_chat_format(folder, family, -1, *tokenizer)) {}
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatFormat> chat;
};

TEST(ChatTools, ChatGlm3PutsThemIntoTheSystemMessage) {
  const Model model(test_data("tiny-chatglm3"), "chatglm");
  const std::string listed =
      "\n[\n    {\n        \"name\": \"get_weather\",\n        \"description\": \"天气\",\n        "
      "\"parameters\": {\n            \"type\": \"object\",\n            \"properties\": {\n       "
      "         "
      "\"city\": {\n                    \"type\": \"string\"\n                }\n            }\n   "
      "     }\n    }\n]";
  const ChatTurn question{"user", "北京天气?"};
  EXPECT_EQ(model.chat->render({Turns{{"system", "Help."}, question}, read_tools(kTools)}),
            model.chat->render(Turns{{"system", "Help." + listed}, question}));
  // Without a system message there comes the one that the model knows.
  EXPECT_EQ(model.chat->render({Turns{question}, read_tools(kTools)}),
            model.chat->render(Turns{{"system",
                                      "Answer the following questions as best as you can. You have "
                                      "access to the following tools:" +
                                          listed},
                                     question}));
}

TEST(ChatTools, ChatGlm3WritesCallsAndResultsAsTurns) {
  const Model model(test_data("tiny-chatglm3"), "chatglm");
  const auto special = [&](const char* token) { return *model.tokenizer->special(token); };
  Ids expected = {special("[gMASK]"), special("sop")};
  const auto add = [&](const char* role, const std::string& metadata, const std::string& content) {
    expected.push_back(special(role));
    for (const std::string& text : {metadata + "\n", content}) {
      const Ids ids = model.tokenizer->encode(text);
      expected.insert(expected.end(), ids.begin(), ids.end());
    }
  };
  add("<|user|>", "", "a");
  add("<|assistant|>", "get_weather", "```python\ntool_call(city='北京', days=3)\n```");
  add("<|observation|>", "", "22");
  expected.push_back(special("<|assistant|>"));
  for (const char* role : {"tool", "observation"}) {
    EXPECT_EQ(model.chat->render(Turns{{"user", "a"}, weather_call(), {role, "22"}}), expected);
  }
  // The same by a metadata line, as an interpreter's turn has it.
  ChatTurn named{"assistant", "```python\ntool_call(city='北京', days=3)\n```"};
  named.metadata = "get_weather";
  EXPECT_EQ(model.chat->render(Turns{{"user", "a"}, named, {"tool", "22"}}), expected);
}

// As the published template and code of glm-4-9b-chat write them.
TEST(ChatTools, Glm4ListsThemAsSections) {
  const Model model(test_data("tiny-glm4-chat"), "chatglm");
  Ids expected;
  const auto token = [&](const char* name) { expected.push_back(*model.tokenizer->special(name)); };
  const auto text = [&](const std::string& part) {
    const Ids ids = model.tokenizer->encode(part);
    expected.insert(expected.end(), ids.begin(), ids.end());
  };
  token("[gMASK]");
  token("<sop>");
  token("<|system|>");
  text(
      "\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 "
      "模型开发的，你的任务是针对用户的问题和要求"
      "提供适当的答复和支持。\n\n# 可用工具\n\n"
      "## get_weather\n\n{\n    \"name\": \"get_weather\",\n    \"description\": \"天气\",\n    "
      "\"parameters\": {\n        \"type\": \"object\",\n        \"properties\": {\n            "
      "\"city\": {\n                \"type\": \"string\"\n            }\n        }\n    }\n}\n"
      "在调用上述函数时，请使用 Json 格式表示调用的参数。\n\n## roll\n\n{\n    \"name\": "
      "\"roll\"\n}\n在调用上述函数时，请使用 Json 格式表示调用的参数。");
  token("<|system|>");
  text("\nHelp.");
  token("<|user|>");
  text("\n北京天气?");
  token("<|assistant|>");
  text("get_weather\n{\"city\": \"北京\", \"days\": 3}");
  token("<|observation|>");
  text("\n22");
  token("<|assistant|>");
  std::string tools = kTools;
  tools.replace(tools.rfind(']'), 1, R"(, {"name": "roll"}])");
  EXPECT_EQ(model.chat->render(
                {Turns{{"system", "Help."}, {"user", "北京天气?"}, weather_call(), {"tool", "22"}},
                 read_tools(tools)}),
            expected);
}

TEST(ChatTools, ChatGlm2AsksInRounds) {
  const Model model(test_data("tiny-chatglm2"), "chatglm");
  EXPECT_EQ(model.chat->name(), std::string("chatglm2"));
  EXPECT_EQ(model.chat->stop_ids(), (Ids{2}));
  const Turns turns = {{"user", "你好"}, {"assistant", "好"}, {"user", "再见"}};
  EXPECT_EQ(model.chat->render(turns),
            model.chat->plain("[Round 1]\n\n问：你好\n\n答：好\n\n[Round 2]\n\n问：再见\n\n答："));
  expect_error(Code::kInvalidArgument, "messages[0].role: found \"system\"", [&] {
    (void)model.chat->render(Turns{{"system", "x"}, {"user", "y"}});
  });
  expect_error(Code::kInvalidArgument, "the last one is an answer", [&] {
    (void)model.chat->render(Turns{{"user", "x"}, {"assistant", "y"}});
  });
  expect_error(Code::kUnimplemented, "tools_json: is set", [&] {
    (void)model.chat->render({Turns{{"user", "x"}}, read_tools(kTools)});
  });
}

// ChatGLM2 and ChatGLM3 have one tokenizer.model: their published name tells, or the tokenizer's
// code.
TEST(ChatTools, ChatGlm2IsToldFromChatGlm3) {
  const auto name_of = [](const std::string& file, const std::string& text) {
    const TemporaryFolder folder;
    folder.write("tokenizer.model", read_whole(test_data("tiny-chatglm3/tokenizer.model")));
    folder.write(file, text);
    return std::string(Model(folder.path(), "chatglm").chat->name());
  };
  EXPECT_EQ(name_of("config.json", R"({"_name_or_path": "THUDM/ChatGLM2-6B"})"), "chatglm2");
  EXPECT_EQ(name_of("config.json", R"({"_name_or_path": "THUDM/chatglm3-6b-32k"})"), "chatglm3");
  EXPECT_EQ(name_of("config.json", R"({"_name_or_path": "/data/mine"})"), "chatglm3");
  EXPECT_EQ(name_of("tokenizer_config.json", R"({"name_or_path": "THUDM/chatglm2-6b"})"),
            "chatglm2");
  EXPECT_EQ(name_of("tokenization_chatglm.py", "special_tokens = ['[MASK]', 'sop']"), "chatglm2");
  EXPECT_EQ(name_of("tokenization_chatglm.py", "role = ['<|user|>']"), "chatglm3");
}

TEST(ChatTools, RealChatGlmPrompts) {
  const std::string folder = kShared + "tokenizers/chatglm3";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is absent";
  const Model model(folder, "chatglm");
  const std::string system =
      R"(Answer the following questions as best as you can. You have access to the following tools:
{
    "random_number_generator": {
        "name": "random_number_generator",
        "description": "Generates a random number x, s.t. range[0] <= x < range[1]",
        "params": [
            {
                "name": "seed",
                "description": "The random seed used by the generator",
                "type": "int",
                "required": true
            },
            {
                "name": "range",
                "description": "The range of the generated numbers",
                "type": "tuple[int, int]",
                "required": true
            }
        ]
    },
    "get_weather": {
        "name": "get_weather",
        "description": "Get the current weather for `city_name`",
        "params": [
            {
                "name": "city_name",
                "description": "The name of the city to be queried",
                "type": "str",
                "required": true
            }
        ]
    }
})";
  const Ids expected = {
      64790, 64792, 64794, 30910, 13,    20115, 267,   1762,  2554,  362,   1077,  362,   344,
      457,   30930, 809,   431,   1675,  289,   267,   1762,  4159,  30954, 13,    30982, 13,
      296,   30955, 16599, 30962, 11228, 30962, 7311,  1306,  2932,  729,   13,    352,   30955,
      2323,  2932,  449,   16599, 30962, 11228, 30962, 7311,  1306,  1252,  13,    352,   30955,
      16302, 2932,  449,   9398,  711,   260,   5402,  1276,  1994,  30932, 268,   30930, 30912,
      30930, 2288,  30995, 30940, 30996, 14819, 1994,  906,   2288,  30995, 30939, 30996, 1252,
      13,    352,   30955, 12209, 2932,  790,   13,    753,   30982, 13,    647,   30955, 2323,
      2932,  449,   24794, 1252,  13,    647,   30955, 16302, 2932,  449,   1036,  5402,  9352,
      1050,  422,   267,   17009, 1252,  13,    647,   30955, 3543,  2932,  449,   592,   1252,
      13,    647,   30955, 20379, 2932,  2033,  13,    753,   4143,  13,    753,   30982, 13,
      647,   30955, 2323,  2932,  449,   7855,  1252,  13,    647,   30955, 16302, 2932,  449,
      1036,  2288,  290,   267,   7383,  3859,  1252,  13,    647,   30955, 3543,  2932,  449,
      30912, 16471, 30995, 592,   30932, 558,   30996, 1252,  13,    647,   30955, 20379, 2932,
      2033,  13,    753,   30983, 13,    352,   30996, 13,    296,   4143,  13,    296,   30955,
      752,   30962, 27564, 2932,  729,   13,    352,   30955, 2323,  2932,  449,   752,   30962,
      27564, 1252,  13,    352,   30955, 16302, 2932,  449,   4867,  267,   1465,  5100,  332,
      4256,  17654, 30962, 2323,  31040, 1252,  13,    352,   30955, 12209, 2932,  790,   13,
      753,   30982, 13,    647,   30955, 2323,  2932,  449,   17654, 30962, 2323,  1252,  13,
      647,   30955, 16302, 2932,  449,   1036,  1462,  290,   267,   1911,  289,   330,   580,
      266,   819,   1252,  13,    647,   30955, 3543,  2932,  449,   2069,  1252,  13,    647,
      30955, 20379, 2932,  2033,  13,    753,   30983, 13,    352,   30996, 13,    296,   30983,
      13,    30983, 64795, 30910, 13,    30910, 36454, 31623, 37853, 54744, 64796};
  EXPECT_EQ(model.chat->render(Turns{{"system", system}, {"user", "生成一个随机数"}}), expected);
  EXPECT_EQ(model.tokenizer->encode("[Round 1]\n\n问：你好\n\n答："),
            (Ids{790, 30951, 517, 30910, 30939, 30996, 13, 13, 54761, 31211, 39701, 13, 13, 55437,
                 31211}));
}

TEST(ChatTools, ModelsWithoutToolsSaySo) {
  const Model model(test_data("tiny-llama3"), "llama");
  expect_error(Code::kUnimplemented,
               "tools_json: is set, and the chat format of this model (llama3)", [&] {
                 (void)model.chat->render({Turns{{"user", "x"}}, read_tools(kTools)});
               });
  expect_error(Code::kUnimplemented, "messages[1].tool_calls: ", [&] {
    (void)model.chat->render(Turns{{"user", "x"}, weather_call()});
  });
  expect_error(Code::kUnimplemented, "messages[0].role: ", [&] {
    (void)model.chat->render(Turns{{"tool", "x"}});
  });
}

}  // namespace
}  // namespace trireme

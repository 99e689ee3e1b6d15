// SPDX-License-Identifier: Apache-2.0
// A checkpoint's chat_template decides which built-in format is used, or that none is.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/chat.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

using Turns = std::vector<ChatTurn>;

// The tokenizer of a model of tests/data with another template.
struct Templated {
  Templated(const std::string& name, const std::string& family, const std::string& chat_template) {
    for (const char* file : {"tokenizer.json", "tokenizer.model"}) {
      const std::string source = test_data(name + "/" + file);
      if (std::filesystem::exists(source)) folder.write(file, read_whole(source));
    }
    folder.write("chat_template.jinja", chat_template);
    tokenizer = load_tokenizer(folder.path(), family);
    chat = make_chat_format(folder.path(), family, -1, *tokenizer);
  }
  std::string refusal() const {
    try {
      (void)chat->render(Turns{{"user", "hi"}});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kUnimplemented);
      return error.what();
    }
    return "";
  }
  TemporaryFolder folder;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatFormat> chat;
};

const char* const kPlainChatMl =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const char* const kHermes =
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\\n\\n' }}{% endif %}{{ \"# Tools\\n\\nYou may call one or more "
    "functions to assist "
    "with the user query.\\n\\nYou are provided with function signatures within <tools></tools> "
    "XML tags:\\n<tools>\" }}"
    "{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ \"\\n</tools>\\n\\nFor "
    "each function call, "
    "return a json object with function name and arguments within <tool_call></tool_call> XML "
    "tags:\\n<tool_call>\\n"
    "{\\\"name\\\": <function-name>, \\\"arguments\\\": "
    "<args-json-object>}\\n</tool_call><|im_end|>\\n\" }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + "
    "'<|im_end|>\\n' }}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' or (m.role == 'assistant' and not "
    "m.tool_calls) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% elif m.role == "
    "'assistant' %}"
    "{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\\n' + m.content }}{% endif %}{% for c in "
    "m.tool_calls %}"
    "{{ '\\n<tool_call>\\n{\"name\": \"' ~ c.function.name ~ '\", \"arguments\": ' }}{{ "
    "c.function.arguments | tojson }}"
    "{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% "
    "endif %}"
    "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif "
    "%}{% endif %}"
    "{% endfor %}{{ '<|im_start|>assistant\\n' }}";

TEST(ChatTemplate, ChoosesTheFormatWhoseIdsAreEqual) {
  const Templated plain("tiny-qwen2", "qwen2", kPlainChatMl);
  EXPECT_EQ(plain.chat->name(), std::string("chatml"));
  EXPECT_FALSE(plain.chat->knows_tools());
  const Templated hermes("tiny-qwen2", "qwen2", kHermes);
  EXPECT_EQ(hermes.chat->name(), std::string("qwen2.5"));
  EXPECT_TRUE(hermes.chat->knows_tools());
  const Templated today(
      "tiny-llama3", "llama",
      "<|begin_of_text|>{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
      "'<|end_header_id|>\\n\\n' + m.content|trim + '<|eot_id|>' }}{% endfor %}"
      "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}");
  EXPECT_EQ(today.chat->name(), std::string("llama3"));
}

TEST(ChatTemplate, ADifferentTemplateRefusesChatAndSaysWhere) {
  const Templated shouts("tiny-qwen2", "qwen2",
                         std::string(kPlainChatMl) + "{# #}{{ 'Sure:' if messages|length > 1 }}");
  EXPECT_NE(shouts.refusal().find("the template has \"Sure:\""), std::string::npos)
      << shouts.refusal();
  EXPECT_NE(shouts.refusal().find("use Generate"), std::string::npos);
  EXPECT_EQ(shouts.chat->plain("a"), shouts.tokenizer->encode("a"));

  const Templated unknown("tiny-qwen2", "qwen2", "{% include 'other' %}");
  EXPECT_NE(unknown.refusal().find("cannot be compared: line 1: the statement 'include'"),
            std::string::npos);
  const Templated broken("tiny-llama3", "llama", "{% if %}");
  EXPECT_NE(broken.refusal().find("cannot be compared: line 1"), std::string::npos);
  const Templated endless(
      "tiny-glm", "glm",
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}");
  EXPECT_NE(endless.refusal().find("more than a template may"), std::string::npos);
  const Templated refusing("tiny-glm", "glm", "{{ raise_exception('never') }}");
  EXPECT_NE(refusing.refusal().find("never"), std::string::npos);
}

// The template that copies of ChatGLM3's tokenizer_config.json carry gives other ids than its code.
TEST(ChatTemplate, ChatGlm3GoesByItsCode) {
  const Templated model(
      "tiny-chatglm3", "chatglm",
      "{% for m in messages %}{% if loop.first %}[gMASK]sop<|{{ m.role }}|>\n {{ m.content }}"
      "{% else %}<|{{ m.role }}|>\n {{ m.content }}{% endif %}{% endfor %}<|assistant|>");
  EXPECT_EQ(model.chat->name(), std::string("chatglm3"));
  EXPECT_EQ(model.chat->render(Turns{{"user", "你好"}}),
            (std::vector<int32_t>{513, 515, 518, 432, 13, 373, 519}));
}

TEST(ChatTemplate, EveryModelOfOursChats) {
  for (const auto& entry : std::filesystem::directory_iterator(test_data(""))) {
    const std::string config = entry.path().string() + "/config.json";
    const bool has_tokenizer = std::filesystem::exists(entry.path().string() + "/tokenizer.json");
    if (!std::filesystem::exists(config) || !has_tokenizer) continue;
    const std::string family = read_json_file(config).at("model_type");
    const auto tokenizer = load_tokenizer(entry.path(), family);
    const auto chat = make_chat_format(entry.path(), family, -1, *tokenizer);
    EXPECT_FALSE(chat->name() == std::string("none")) << entry.path();
  }
}

}  // namespace
}  // namespace trireme

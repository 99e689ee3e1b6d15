// SPDX-License-Identifier: Apache-2.0
// A checkpoint's chat_template decides which built-in format is used, or that none is.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/chat.h"
#include "tests/coordinator/chat_templates.h"
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

TEST(ChatTemplate, ChoosesTheFormatWhoseIdsAreEqual) {
  const Templated plain("tiny-qwen2", "qwen2", kPlainChatMl);
  EXPECT_EQ(plain.chat->name(), std::string("chatml"));
  EXPECT_FALSE(plain.chat->knows_tools());
  const Templated hermes("tiny-qwen2", "qwen2", kHermes);
  EXPECT_EQ(hermes.chat->name(), std::string("qwen2.5"));
  EXPECT_TRUE(hermes.chat->knows_tools());
  // As the first checkpoints of Qwen2.5 have it.
  std::string doubled = kHermes;
  const auto replace = [&](const std::string& from, const std::string& to) {
    const size_t at = doubled.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    doubled.replace(at, from.size(), to);
  };
  replace("{\\\"name\\\": <function-name>", "{{\\\"name\\\": <function-name>");
  replace("<args-json-object>}", "<args-json-object>}}");
  const Templated braces("tiny-qwen2", "qwen2", doubled);
  EXPECT_EQ(braces.chat->name(), std::string("qwen2.5"));
  const std::vector<Tool> tools = read_tools(R"([{"name": "f"}])");
  EXPECT_NE(braces.chat->render({Turns{{"user", "x"}}, tools}),
            hermes.chat->render({Turns{{"user", "x"}}, tools}));
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

// As transformers reads them: chat_template.jinja goes before tokenizer_config.json, and one for
// conversations with tools may lie beside it.
TEST(ChatTemplate, TheFilesGoBeforeTheConfig) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", read_whole(test_data("tiny-qwen2/tokenizer.json")));
  const auto name = [&] {
    const auto tokenizer = load_tokenizer(folder.path(), "qwen2");
    return std::string(make_chat_format(folder.path(), "qwen2", -1, *tokenizer)->name());
  };
  folder.write(
      "tokenizer_config.json",
      nlohmann::json({{"chat_template", kPlainChatMl}, {"eos_token", "<|im_end|>"}}).dump());
  EXPECT_EQ(name(), "chatml");
  folder.write("chat_template.jinja", "{{ 'Sure:' }}");
  EXPECT_EQ(name(), "none");
  folder.write("chat_template.jinja", kPlainChatMl);
  EXPECT_EQ(name(), "chatml");
  std::filesystem::create_directory(folder.path() + "/additional_chat_templates");
  folder.write("additional_chat_templates/tool_use.jinja", kHermes);
  EXPECT_EQ(name(), "qwen2.5");
  folder.write("tokenizer_config.json", nlohmann::json({{"chat_template", "{{ 'No' }}"}}).dump());
  EXPECT_EQ(name(), "qwen2.5");
}

// The first of Mistral's know no system message; one has a blank behind each answer.
TEST(ChatTemplate, MistralsFirst) {
  for (const std::string blank : {"", " "}) {
    const Templated model(
        "tiny-mistral", "mistral",
        "<s>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('in turn') }}{% endif %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ m.content + '</s>" +
            blank + "' }}{% else %}{{ raise_exception('who?') }}{% endif %}{% endfor %}");
    EXPECT_EQ(model.chat->name(), std::string("mistral")) << model.refusal();
    EXPECT_FALSE(model.chat->knows_tools());
    expect_error(Code::kInvalidArgument, "messages[0].role: found \"system\"", [&] {
      (void)model.chat->render(Turns{{"system", "x"}, {"user", "y"}});
    });
  }
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

// SPDX-License-Identifier: Apache-2.0
#include "launch/generate_input.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "kernels/base/error.h"
#include "launch/options.h"

namespace trireme {
namespace {

// ---- the lines of generate --input ----

class InputFile : public testing::Test {
 protected:
  std::vector<GenerateItem> read(const std::string& text) {
    std::ofstream(path_) << text;
    GenerateFlags flags;
    flags.input = path_;
    flags.temperature = 0.25;
    flags.max_tokens = 7;
    return read_items(flags);
  }

  const std::string path_ =
      testing::TempDir() + "/options_test_" + std::to_string(getpid()) + ".jsonl";
};

TEST_F(InputFile, LinesOverrideFlags) {
  const auto items = read(
      "{\"prompt\": \"a\", \"temperature\": 1, \"top_p\": 0.5, \"top_k\": 2, \"seed\": 9}\n"
      "\n"
      "{\"chat\": \"b\", \"stop\": [\"x\", \"y\"], \"ignore_eos\": true, \"max_tokens\": 3}\r\n"
      "{\"prompt_ids\": [1, 2], \"stop\": \"z\", \"stop_token_ids\": [4], \"logprobs\": 1}");
  ASSERT_EQ(items.size(), 3u);
  const auto& text = std::get<v1::GenerateRequest>(items[0].request);
  EXPECT_EQ(text.text(), "a");
  EXPECT_EQ(text.sampling().temperature(), 1);
  EXPECT_EQ(text.sampling().top_p(), 0.5);
  EXPECT_EQ(text.sampling().top_k(), 2);
  EXPECT_EQ(text.sampling().seed(), 9u);
  EXPECT_EQ(text.max_tokens(), 7);
  const auto& chat = std::get<v1::ChatRequest>(items[1].request);
  EXPECT_EQ(chat.messages(0).role(), "user");
  EXPECT_EQ(chat.messages(0).content(), "b");
  EXPECT_EQ(chat.stop_size(), 2);
  EXPECT_TRUE(chat.ignore_eos());
  EXPECT_EQ(chat.max_tokens(), 3);
  EXPECT_EQ(chat.sampling().temperature(), 0.25);
  const auto& ids = std::get<v1::GenerateRequest>(items[2].request);
  EXPECT_EQ(ids.token_ids().ids_size(), 2);
  EXPECT_EQ(ids.stop(0), "z");
  EXPECT_EQ(ids.stop_token_ids(0), 4);
  EXPECT_EQ(ids.logprobs(), 1);
  EXPECT_EQ(items[2].where, path_ + ":4");
}

TEST_F(InputFile, LinesSayHowToSample) {
  const auto items = read(
      "{\"prompt\": \"a\", \"min_p\": 0.1, \"repetition_penalty\": 1.2, \"frequency_penalty\": "
      "-0.5,"
      " \"presence_penalty\": 0.75, \"logit_bias\": {\"198\": -100, \"25\": 1.5}, \"n\": 4,"
      " \"min_tokens\": 6}\n{\"prompt\": \"b\"}\n");
  const auto& request = std::get<v1::GenerateRequest>(items.at(0).request);
  EXPECT_EQ(request.sampling().min_p(), 0.1);
  EXPECT_EQ(request.sampling().repetition_penalty(), 1.2);
  EXPECT_EQ(request.sampling().frequency_penalty(), -0.5);
  EXPECT_EQ(request.sampling().presence_penalty(), 0.75);
  EXPECT_EQ(request.sampling().logit_bias().size(), 2u);
  EXPECT_EQ(request.sampling().logit_bias().at(198), -100);
  EXPECT_EQ(request.n(), 4);
  EXPECT_EQ(request.min_tokens(), 6);
  const auto& plain = std::get<v1::GenerateRequest>(items.at(1).request);
  EXPECT_EQ(plain.n(), 1);
  EXPECT_TRUE(plain.sampling().logit_bias().empty());
  EXPECT_FALSE(plain.has_min_tokens());
}

TEST_F(InputFile, BadLinesAreNamed) {
  for (const char* bad : {"not json",
                          "[1]",
                          "{}",
                          "{\"prompt\": \"a\", \"chat\": \"b\"}",
                          "{\"prompt\": 3}",
                          "{\"prompt\": \"a\", \"temprature\": 1}",
                          "{\"prompt\": \"a\", \"max_tokens\": \"3\"}",
                          "{\"prompt\": \"a\", \"max_tokens\": 1.5}",
                          "{\"prompt\": \"a\", \"max_tokens\": 3000000000}",
                          "{\"prompt\": \"a\", \"top_k\": 18446744073709551615}",
                          "{\"prompt\": \"a\", \"seed\": -1}",
                          "{\"prompt\": \"a\", \"stop\": [1]}",
                          "{\"prompt_ids\": [\"1\"]}",
                          "{\"prompt_ids\": 1}",
                          "{\"prompt\": \"a\", \"logit_bias\": [1]}",
                          "{\"prompt\": \"a\", \"logit_bias\": {\"x\": 1}}",
                          "{\"prompt\": \"a\", \"logit_bias\": {\"1\": \"2\"}}",
                          "{\"prompt\": \"a\", \"logit_bias\": {\"1\": 1, \"01\": 2}}",
                          "{\"prompt\": \"a\", \"n\": 1.5}",
                          "{\"prompt\": \"a\", \"min_p\": \"x\"}",
                          "{\"prompt\": \"a\", \"ignore_eos\": 1}",
                          "{\"prompt\": \"a\"",
                          "{\"prompt\": \"\xff\"}"}) {
    try {
      read(std::string("{\"prompt\": \"fine\"}\n") + bad + "\n");
      ADD_FAILURE() << "was taken: " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInvalidArgument);
      EXPECT_EQ(std::string(error.what()).rfind(path_ + ":2: ", 0), 0u) << error.what();
    }
  }
}

TEST_F(InputFile, MissingOrEmpty) {
  GenerateFlags flags;
  flags.input = "/nonexistent/file";
  EXPECT_THROW(read_items(flags), Error);
  EXPECT_THROW(read("\n \n"), Error);
  flags.input = testing::TempDir();  // opens, and cannot be read
  try {
    read_items(flags);
    ADD_FAILURE() << "a folder was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound) << error.what();
  }
}

}  // namespace
}  // namespace trireme

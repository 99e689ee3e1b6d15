// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/sentencepiece_check.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/worker/model_files.h"

namespace trireme {
namespace {

std::string field(int number, const std::string& value) {
  std::string bytes(1, static_cast<char>(number << 3 | 2));
  size_t size = value.size();
  for (; size > 127; size >>= 7) bytes += static_cast<char>(size | 0x80);
  return bytes + static_cast<char>(size) + value;
}

// A model of one normaliser: `units` of its table, then the texts.
std::string with_table(const std::vector<uint32_t>& units, const std::string& texts) {
  std::string table = bytes_of(static_cast<uint32_t>(4 * units.size()));
  for (const uint32_t unit : units) table += bytes_of(unit);
  return field(3, field(2, table + texts));
}

void expect_refused(const std::string& model, const std::string& part) {
  expect_error(Code::kInvalidArgument, part, [&] { check_sentencepiece_model(model, "file"); });
}

TEST(SentencepieceCheck, TakesRealModels) {
  for (const char* name : {"tiny-chatglm3", "tiny-gemma", "tiny-mistral"}) {
    check_sentencepiece_model(read_whole(test_data(std::string(name) + "/tokenizer.model")), name);
  }
  const std::string real = TRIREME_SOURCE_DIR "/../shared/data/tokenizers/chatglm3/tokenizer.model";
  if (!std::filesystem::exists(real)) GTEST_SKIP() << "../shared is absent";
  check_sentencepiece_model(read_whole(real), real);
}

TEST(SentencepieceCheck, RefusesPiecesThatWouldOverflowTheStack) {
  expect_refused(field(1, field(1, std::string(1025, 'x'))), "a piece has 1025 bytes");
  expect_refused(field(1, field(1, std::string("a\0b", 3))), "or a zero byte");
  const std::string nan = std::string(1, 2 << 3 | 5) + std::string("\0\0\xC0\x7F", 4);
  expect_refused(field(1, nan), "no finite number");
}

TEST(SentencepieceCheck, RefusesTablesThatLeadAstray) {
  const std::vector<uint32_t> zeros(256);
  check_sentencepiece_model(with_table(zeros, std::string("a\0", 2)), "file");
  expect_refused(with_table(zeros, "a"), "do not end");
  expect_refused(with_table(zeros, std::string(65, 'a') + '\0'), "too long");
  expect_refused(with_table({0, 0}, std::string(1, '\0')), "leads out of itself");
  std::vector<uint32_t> units = zeros;
  units[5] = 1u << 10 | 1u << 9;  // offset 256, behind the end
  expect_refused(with_table(units, std::string(1, '\0')), "leads out of itself");
  units = zeros;
  units[5] = 1u << 8;       // the value of node 5 is unit 5 ^ 0 ^ 0 …
  units[5] |= 7u << 10;     // … ^ 7: unit 2
  units[2] = 1u << 31 | 2;  // the third byte of the texts
  check_sentencepiece_model(with_table(units, std::string(3, '\0')), "file");
  expect_refused(with_table(units, std::string(2, '\0')), "points behind its texts");
}

TEST(SentencepieceCheck, RefusesWhatIsCutShort) {
  const std::string model = read_whole(test_data("tiny-chatglm3/tokenizer.model"));
  expect_refused(model.substr(0, model.size() - 1), "cut short");
  expect_refused("\x0B", "another format");
}

}  // namespace
}  // namespace trireme

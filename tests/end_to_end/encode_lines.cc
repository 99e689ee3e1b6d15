// SPDX-License-Identifier: Apache-2.0
// encode_lines PATH FAMILY: our side of tokenizer_equality_test.py. Each line of stdin is JSON, and
// so is the answer: of a text its ids and what they decode to, of a list of texts the processor
// time that encoding them took.
#include <time.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "coordinator/tokenizer/tokenizer.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

Json answer(const Tokenizer& tokenizer, const Json& question) {
  if (question.is_string()) {
    const auto ids = tokenizer.encode(question.get_ref<const std::string&>());
    return {{"ids", ids}, {"text", tokenizer.decode(ids)}};
  }
  const auto texts = question.get<std::vector<std::string>>();
  size_t tokens = 0;
  const double start = processor_seconds();
  for (const std::string& text : texts) tokens += tokenizer.encode(text).size();
  return {{"seconds", processor_seconds() - start}, {"tokens", tokens}};
}

int run(const std::string& path, const std::string& family) {
  const auto tokenizer = load_tokenizer(path, family);
  std::cout << Json{{"size", tokenizer->size()}} << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(*tokenizer, Json::parse(line)) << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: encode_lines PATH FAMILY\n";
    return 2;
  }
  try {
    return trireme::run(argv[1], argv[2]);
  } catch (const trireme::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

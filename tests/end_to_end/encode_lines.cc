// SPDX-License-Identifier: Apache-2.0
// encode_lines PATH FAMILY: our side of tokenizer_equality_test.py. Each line of stdin is a JSON
// list of texts; the answer to it is a line too: their ids, what these decode to, and the processor
// time that encoding took.
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

Json answer(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  std::vector<std::vector<int32_t>> ids;
  const double start = processor_seconds();
  for (const std::string& text : texts) ids.push_back(tokenizer.encode(text));
  const double seconds = processor_seconds() - start;
  std::vector<std::string> decoded;
  for (const auto& text_ids : ids) decoded.push_back(tokenizer.decode(text_ids));
  return {{"ids", ids}, {"texts", decoded}, {"seconds", seconds}};
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

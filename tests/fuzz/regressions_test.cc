// SPDX-License-Identifier: Apache-2.0
// Every fuzz target over the inputs that once broke it, and over its seeds.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/fuzz.h"

namespace trireme::fuzz {
namespace {

namespace fs = std::filesystem;

class Regressions : public testing::TestWithParam<Target> {};

TEST_P(Regressions, AreHarmless) {
  GetParam().run("");
  const fs::path root = TRIREME_SOURCE_DIR "/tests/fuzz";
  int count = 0;
  for (const char* kind : {"regressions", "seeds"}) {
    const fs::path folder = root / kind / GetParam().name;
    if (!fs::exists(folder)) continue;
    for (const auto& entry : fs::directory_iterator(folder)) {
      SCOPED_TRACE(entry.path().string());
      std::ifstream file(entry.path(), std::ios::binary);
      const std::string input{std::istreambuf_iterator<char>(file), {}};
      GetParam().run(input);
      ++count;
    }
  }
  RecordProperty("inputs", count);
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Regressions, testing::ValuesIn(targets().begin(), targets().end()),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace trireme::fuzz

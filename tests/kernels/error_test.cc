// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/error.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

std::string shown(const std::string& message) { return Error(Code::kInternal, message).what(); }

TEST(Error, KeepsPlainMessages) {
  for (const char* text : {"cannot read x: found 3, needed 4", "é … 你好 🚀", "", "U+00A0 \u00A0"}) {
    EXPECT_EQ(shown(text), text);
  }
}

TEST(Error, ShowsNoByteThatATerminalOrAStatusCannotTake) {
  EXPECT_EQ(shown("a\x1b[31mb"), "a?[31mb");
  EXPECT_EQ(shown(std::string("a\0b\x7F", 4)), "a?b?");
  EXPECT_EQ(shown("two\nlines"), "two lines");
  EXPECT_EQ(shown("C1: \xC2\x9B"), "C1: ??");
  for (const char* broken :
       {"\xFF", "\xC3", "\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80"}) {
    EXPECT_EQ(shown(broken).find_first_not_of('?'), std::string::npos) << broken;
  }
}

TEST(Error, CutsTheMiddleOfALongMessage) {
  for (size_t length : {2049u, 3000u, 1u << 20}) {
    std::string middle;
    while (middle.size() < length) middle += "é";
    const std::string text = shown("begins; " + middle + "; ends");
    EXPECT_LE(text.size(), kMaxErrorBytes);
    EXPECT_TRUE(text.starts_with("begins; é"));
    EXPECT_TRUE(text.ends_with("é; ends"));
    EXPECT_EQ(text.find('?'), std::string::npos);
  }
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// CHECK: for what only a bug of ours can break. On in release builds; prints and aborts.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace trireme {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition,
                                      const std::string& message) {
  std::fprintf(stderr, "%s:%d: CHECK(%s) failed: %s\n", file, line, condition, message.c_str());
  std::abort();
}

}  // namespace trireme

#define CHECK(condition, message)                                         \
  do {                                                                    \
    if (!(condition)) [[unlikely]] {                                      \
      ::trireme::check_failed(__FILE__, __LINE__, #condition, (message)); \
    }                                                                     \
  } while (false)

// SPDX-License-Identifier: Apache-2.0
// Whether this is a build under sanitizers, where all takes ten times as long: tests of numbers
// then take fewer cases, enough to run all code.
#pragma once

namespace trireme {

constexpr bool kSanitized = TRIREME_SANITIZED;  // of CMake

}  // namespace trireme

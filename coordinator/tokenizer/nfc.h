// SPDX-License-Identifier: Apache-2.0
// Unicode normalisation form C.
#pragma once

#include <string>
#include <string_view>

namespace trireme {

// text is valid UTF-8. O(n log n), also for a hostile run of combining marks.
std::string to_nfc(std::string_view text);

}  // namespace trireme

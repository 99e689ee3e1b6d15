// SPDX-License-Identifier: Apache-2.0
// Unicode normalisation forms C and KC.
#pragma once

#include <string>
#include <string_view>

namespace trireme {

// text is valid UTF-8. O(n log n), also for a hostile run of combining marks. KC grows a text to at
// most 11 times its bytes.
std::string to_nfc(std::string_view text);
std::string to_nfkc(std::string_view text);

}  // namespace trireme

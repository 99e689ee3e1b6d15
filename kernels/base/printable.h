// SPDX-License-Identifier: Apache-2.0
// What a file or a peer says, made fit for a terminal, a log and a message.
#pragma once

#include <string>
#include <string_view>

namespace trireme {

// UTF-8 without control characters: what is neither becomes '?', the end of a line a blank.
std::string printable(std::string_view text);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Small files that a user brings.
#pragma once

#include <string>

namespace trireme {

// The whole file. `what` names it in errors: "the device map". Throws kNotFound, with `advice`, or
// kInvalidArgument for what is no regular file (a pipe could be read for ever) or has more than 16
// MiB.
std::string read_text_file(const std::string& path, const std::string& what,
                           const std::string& advice);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Small files that tell the owner of this process something: never half written, nobody else's to
// read.
#pragma once

#include <string>

namespace trireme {

// Replaces `path` by a file (0600) with this text: whole or not at all. Throws kFailedPrecondition
// naming `flag` and the path.
void write_private_file(const std::string& path, const std::string& text, const std::string& flag);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Files that flags name: small ones that tell the owner of this process something, never half
// written and nobody else's to read; and those that it reads.
#pragma once

#include <string>

namespace trireme {

// Replaces `path` by a file (0600) with this text: whole or not at all. Throws kFailedPrecondition
// naming `flag` and the path.
void write_private_file(const std::string& path, const std::string& text, const std::string& flag);

// Throws as that would for want of a folder or of permission, before there is anything to write.
void require_writable(const std::string& path, const std::string& flag);

// The whole of a file. Throws kNotFound naming `flag`, path and why: it cannot be read, or is
// empty.
std::string read_flag_file(const std::string& path, const std::string& flag);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Rows of text as columns for people.
#pragma once

#include <string>
#include <vector>

namespace trireme {

using TextRow = std::vector<std::string>;

// Two blanks before each column, none at the end of a line. REQUIRES: a row, and all as wide as the
// first.
std::string draw_table(const std::vector<TextRow>& rows);

}  // namespace trireme

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

// "0.0345", "12.3", "1234": three figures, or all of a number of a thousand and more.
std::string three_figures(double value);

// By printf's format for one number.
std::string format_number(const char* format, double value);

}  // namespace trireme

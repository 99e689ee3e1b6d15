// SPDX-License-Identifier: Apache-2.0
#include "launch/text_table.h"

#include <algorithm>
#include <cstdio>

namespace trireme {

std::string draw_table(const std::vector<TextRow>& rows) {
  // Columns of a terminal: one for each character, whatever its bytes.
  const auto width = [](const std::string& text) {
    return static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  };
  std::vector<size_t> widths(rows.front().size());
  for (const TextRow& row : rows) {
    for (size_t col = 0; col < row.size(); ++col)
      widths[col] = std::max(widths[col], width(row[col]));
  }
  std::string text;
  for (const TextRow& row : rows) {
    std::string line;
    for (size_t col = 0; col < row.size(); ++col) {
      line += "  " + row[col] + std::string(widths[col] - width(row[col]), ' ');
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string three_figures(double value) {
  return format_number(value < 1000 ? "%.3g" : "%.0f", value);
}

std::string format_number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace trireme

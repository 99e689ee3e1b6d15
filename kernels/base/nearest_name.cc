// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/nearest_name.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

namespace trireme {
namespace {

constexpr size_t kMaxName = 200;

// Single characters to insert, delete or replace. (Levenshtein 1966)
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string nearest_name(const std::string& asked, const std::vector<std::string>& names) {
  const std::string_view begin = std::string_view(asked).substr(0, kMaxName);
  const auto best =
      std::min_element(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
        return distance(begin, a) < distance(begin, b);
      });
  return best == names.end() ? "" : *best;
}

}  // namespace trireme

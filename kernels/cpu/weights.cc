// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/weights.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/team.h"

namespace trireme::cpu {
namespace {

// A checkpoint's tensors need not be aligned.
uint32_t load_word(const std::byte* from) {
  uint32_t word = 0;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Rows [begin, end) of `rows` all lie in the panel at `panel`, the first in its column `column`.
void pack_panel(uint32_t* panel, int64_t column, const Tensor& rows, int64_t begin, int64_t end) {
  const int64_t row_bytes = rows.cols * element_size(rows.dtype);
  const int64_t words = row_bytes / 4;
  // A line of each source row at a time: the 32 sources and the 2 KiB of target stay in the L1
  // cache.
  constexpr int64_t kLine = 16;
  for (int64_t first = 0; first < words; first += kLine) {
    const int64_t last = std::min(words, first + kLine);
    for (int64_t row = begin; row < end; ++row) {
      const auto* source = static_cast<const std::byte*>(rows.at(row));
      uint32_t* target = panel + column + row - begin;
      for (int64_t word = first; word < last; ++word) {
        target[word * kPanelRows] = load_word(source + 4 * word);
      }
    }
  }
  if (row_bytes % 4 == 0) return;
  for (int64_t row = begin; row < end; ++row) {  // 16 bits and K odd: half a word is left
    uint16_t half = 0;
    std::memcpy(&half, static_cast<const std::byte*>(rows.at(row)) + 4 * words, sizeof(half));
    panel[words * kPanelRows + column + row - begin] = half;
  }
}

}  // namespace

void pack_rows(const Weight& w, int64_t row, const Tensor& rows, Team& team) {
  if (rows.rows == 0 || w.k == 0) return;
  const int64_t first_panel = row / kPanelRows;
  const int64_t last_panel = (row + rows.rows - 1) / kPanelRows;
  parallel_for(team, last_panel - first_panel + 1, [&](int64_t index, int) {
    const int64_t panel = first_panel + index;
    const int64_t begin = std::max(row, panel * kPanelRows);
    const int64_t end = std::min(row + rows.rows, (panel + 1) * kPanelRows);
    auto* target = reinterpret_cast<uint32_t*>(static_cast<std::byte*>(w.storage.data()) +
                                               panel * panel_bytes(w));
    pack_panel(target, begin - panel * kPanelRows, rows, begin - row, end - row);
  });
}

void unpack_row(float* y, const Weight& w, int64_t row) {
  const std::byte* panel =
      static_cast<const std::byte*>(w.storage.data()) + row / kPanelRows * panel_bytes(w);
  const int64_t column = row % kPanelRows;
  if (w.dtype == DType::kF32) {
    const auto* values = reinterpret_cast<const float*>(panel) + column;
    for (int64_t k = 0; k < w.k; ++k) y[k] = values[k * kPanelRows];
    return;
  }
  const auto* pairs = reinterpret_cast<const uint16_t*>(panel) + 2 * column;
  const auto to_float = w.dtype == DType::kBF16 ? bf16_to_float : fp16_to_float;
  for (int64_t k = 0; k < w.k; ++k) y[k] = to_float(pairs[k / 2 * (2 * kPanelRows) + k % 2]);
}

}  // namespace trireme::cpu

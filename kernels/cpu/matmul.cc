// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/team.h"
#include "kernels/cpu/weights.h"

namespace trireme::cpu {
namespace {

// Between rows of the block, so that the rows of one tile do not all fall into one cache set.
constexpr int64_t kRowGap = kPanelDepth;
// Parts per thread for up to kFewRows rows: a thread that the machine disturbs then takes fewer.
// Each part copies x for itself, so with many rows there is one part per thread.
constexpr int64_t kPartsPerThread = 4;
constexpr int64_t kFewRows = 32;
// Below this many products the threads cost more than they bring.
constexpr int64_t kSerialProducts = 1 << 18;

struct Kernel {
  PanelKernel run = nullptr;
  DType x = DType::kF32;
};

Kernel choose_kernel(Isa isa, DType weights) {
  if (weights == DType::kBF16 && isa == Isa::kAmx) return {panel_amx, DType::kBF16};
  if (weights == DType::kBF16 && isa == Isa::kAvx512Bf16) return {panel_avx512_bf16, DType::kBF16};
  return {vector_panel_kernel(isa, weights), DType::kF32};
}

// One product as all threads see it.
struct Job {
  Kernel kernel;
  Tensor y;
  Tensor x;
  const Weight* w = nullptr;
  const float* bias = nullptr;
  int64_t block_rows = 0;
  int64_t block_depth = 0;
};

// What one thread does: all of k for some rows and some panels.
struct Part {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
};

// A range of rows and k, with x copied to scratch.
struct Block {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t k = 0;
  int64_t depth = 0;
  int64_t x_stride = 0;
  const void* x = nullptr;
  float* edge = nullptr;  // [rows, 32]: stands for y where the last panel juts out
};

template <typename Element>
void copy_row(Element* to, const Element* from, int64_t count, int64_t padded) {
  std::copy_n(from, count, to);  // none, from nowhere, where a rank has no columns
  std::fill(to + count, to + padded, Element{0});
}

void widen_row(float* to, const uint16_t* from, int64_t count, int64_t padded) {
  for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_float(from[i]);
  std::fill(to + count, to + padded, 0.0f);
}

void copy_x(const Job& job, const Block& block, void* to) {
  const int64_t count = std::clamp<int64_t>(job.x.cols - block.k, 0, block.depth);
  for (int64_t r = 0; r < block.rows; ++r) {
    const void* from = job.x.at(block.row + r, block.k);
    void* row = static_cast<std::byte*>(to) + r * block.x_stride * element_size(job.kernel.x);
    if (job.x.dtype == DType::kF32) {
      copy_row(static_cast<float*>(row), static_cast<const float*>(from), count, block.depth);
    } else if (job.kernel.x == DType::kBF16) {
      copy_row(static_cast<uint16_t*>(row), static_cast<const uint16_t*>(from), count, block.depth);
    } else {
      widen_row(static_cast<float*>(row), static_cast<const uint16_t*>(from), count, block.depth);
    }
  }
}

void run_panel(const Job& job, const Block& block, int64_t panel) {
  const Weight& w = *job.w;
  const int64_t column = panel * kPanelRows;
  const int64_t columns = std::min(kPanelRows, w.n - column);
  const bool juts_out = columns < kPanelRows;
  float* y = job.y.row<float>(block.row) + column;
  const size_t row_bytes = static_cast<size_t>(columns) * sizeof(float);

  PanelArgs args;
  args.x = block.x;
  args.x_stride = block.x_stride;
  args.rows = block.rows;
  args.w = static_cast<const std::byte*>(w.storage.data()) + panel * panel_bytes(w) +
           block.k * kPanelRows * element_size(w.dtype);
  args.next_w = static_cast<const std::byte*>(args.w) + panel_bytes(w);
  args.depth = block.depth;
  args.y = juts_out ? block.edge : y;
  args.y_stride = juts_out ? kPanelRows : job.y.stride;

  for (int64_t r = 0; r < block.rows; ++r) {  // the chain begins with the bias
    float* to = args.y + r * args.y_stride;
    if (block.k > 0) {
      if (juts_out) std::memcpy(to, y + r * job.y.stride, row_bytes);
    } else if (job.bias != nullptr) {
      std::memcpy(to, job.bias + column, row_bytes);
    } else {
      std::memset(to, 0, row_bytes);
    }
  }
  job.kernel.run(args);
  if (!juts_out) return;
  for (int64_t r = 0; r < block.rows; ++r) {
    std::memcpy(y + r * job.y.stride, args.y + r * kPanelRows, row_bytes);
  }
}

void run_part(const Job& job, const Part& part, void* scratch) {
  const int64_t depth = round_up(job.w->k, kPanelDepth);
  Block block;
  block.edge = static_cast<float*>(scratch);
  void* x = block.edge + kMatmulBlockRows * kPanelRows;
  block.x = x;
  for (int64_t row = part.row_begin; row < part.row_end; row += job.block_rows) {
    block.row = row;
    block.rows = std::min(job.block_rows, part.row_end - row);
    block.k = 0;
    do {  // once even where K is 0: y is the bias then
      block.depth = std::min(job.block_depth, depth - block.k);
      block.x_stride = block.depth + kRowGap;
      copy_x(job, block, x);
      for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
        run_panel(job, block, panel);
      }
      block.k += block.depth;
    } while (block.k < depth);
  }
}

// The number of rows and of k in a block: all of k where that fits, for then the weights are read
// in one sequential sweep.
void choose_block(Job& job) {
  const int64_t elements = kMatmulBlockBytes / element_size(job.kernel.x);
  const int64_t depth = round_up(job.w->k, kPanelDepth);
  const int64_t max_rows = job.kernel.x == DType::kF32 ? kMatmulBlockRows / 2 : kMatmulBlockRows;
  job.block_rows = std::clamp<int64_t>(job.x.rows, 1, max_rows);
  const int64_t fits =
      std::max(kPanelDepth, elements / job.block_rows / kPanelDepth * kPanelDepth - kRowGap);
  const int64_t blocks = std::max<int64_t>(1, (depth + fits - 1) / fits);  // of equal depth
  job.block_depth = round_up((depth + blocks - 1) / blocks, kPanelDepth);
}

}  // namespace

void matmul(Isa isa, Team& team, const Workspace& scratch, const Tensor& y, const Tensor& x,
            const Weight& w, const float* bias) {
  if (y.rows == 0 || w.n == 0) return;
  Job job{choose_kernel(isa, w.dtype), y, x, &w, bias, 0, 0};
  choose_block(job);

  const int64_t panels = round_up(w.n, kPanelRows) / kPanelRows;
  const int64_t workers = y.rows * w.n * w.k < kSerialProducts ? 1 : team.num_threads();
  // Panels are the better cut, for each weight is then read by one thread only.
  const int64_t wanted = workers > 1 && y.rows <= kFewRows ? kPartsPerThread * workers : workers;
  const int64_t panel_parts = std::min(wanted, panels);
  const int64_t row_units = round_up(y.rows, kPanelRows) / kPanelRows;
  const int64_t row_parts = std::clamp<int64_t>(workers / panel_parts, 1, row_units);
  parallel_for(team, panel_parts * row_parts, [&](int64_t index, int thread) {
    const int64_t p = index % panel_parts;
    const int64_t r = index / panel_parts;
    Part part;
    part.row_begin = row_units * r / row_parts * kPanelRows;
    part.row_end = std::min(y.rows, row_units * (r + 1) / row_parts * kPanelRows);
    part.panel_begin = panels * p / panel_parts;
    part.panel_end = panels * (p + 1) / panel_parts;
    run_part(job, part, scratch.of(thread));
  });
}

}  // namespace trireme::cpu

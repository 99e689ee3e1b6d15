// SPDX-License-Identifier: Apache-2.0
// Checks the shapes, then runs the kernels. Everything is done when an operation returns.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/backend_checks.h"
#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/base/team.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/weights.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

using cpu::Isa;

constexpr int kMaxThreads = 4096;
// Elements that a thread must get for its start to pay.
constexpr int64_t kElementsPerThread = 32768;
constexpr int64_t kCostOfExp = 8;  // elements that an addition does in the time of an exponential

class CpuBackend final : public Backend {
 public:
  CpuBackend(Isa isa, int threads)
      : isa_(isa), team_(threads), rows_(cpu::row_kernels(isa)), scratch_(threads) {
    scratch_.reserve(static_cast<size_t>(matmul_scratch_bytes()));
  }

  bool in_host_memory() const override { return true; }
  std::string name() const override {
    return std::string("cpu ") + isa_name(isa_) + ", " + std::to_string(team_.num_threads()) +
           (team_.num_threads() == 1 ? " thread" : " threads");
  }

  Team& team() override { return team_; }
  Buffer allocate(size_t bytes) override { return cpu::allocate_pages(bytes); }
  void reserve_workspace(int32_t heads_of_kv, int32_t head_dim) override {
    scratch_.reserve(static_cast<size_t>(cpu_scratch_bytes(heads_of_kv, head_dim)));
  }
  size_t workspace_bytes() const override { return scratch_.bytes(); }
  void upload(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  void synchronize() override {}

  Weight make_weight(DType dtype, int64_t n, int64_t k) override {
    CHECK(dtype != DType::kI32 && n >= 0 && k >= 0, dtype_name(dtype));
    return {allocate(static_cast<size_t>(packed_weight_bytes(dtype, n, k))), dtype, n, k};
  }

  void pack_rows(Weight& w, int64_t row, Tensor rows) override {
    check_tensor(rows, rows.dtype == w.dtype, rows.rows, w.k);
    CHECK(row >= 0 && rows.rows >= 0 && row <= w.n - rows.rows, "rows beyond the weight");
    cpu::pack_rows(w, row, rows, team_);
  }

  void embed(Tensor y, const int32_t* ids, const Weight& table, int32_t first_row) override {
    check_fp32(y, y.rows, table.k);
    for_rows(y.rows, y.cols, [&](int64_t t) {
      const int64_t row = int64_t{ids[t]} - first_row;
      if (row >= 0 && row < table.n) {
        cpu::unpack_row(y.row<float>(t), table, row);
      } else {
        std::fill_n(y.row<float>(t), y.cols, 0.0f);
      }
    });
  }

  void rms_norm(Tensor y, Tensor x, const float* weight, float eps) override {
    check_tensor(y, is_activation(y.dtype), x.rows, x.cols);
    check_fp32(x, x.rows, x.cols);
    for_rows(x.rows, x.cols, [&](int64_t t) {
      rows_.rms_norm(y.at(t), y.dtype, x.row<float>(t), weight, x.cols, eps);
    });
  }

  void add_rms_norm(Tensor y, Tensor x, Tensor h, const float* weight, float eps) override {
    check_add_rms_norm(y, x, h);
    for_rows(x.rows, x.cols, [&](int64_t t) {
      rows_.add(x.row<float>(t), h.row<float>(t), x.cols);
      rows_.rms_norm(y.at(t), y.dtype, x.row<float>(t), weight, x.cols, eps);
    });
  }

  void rms_norm_heads(Tensor x, int32_t num_heads, const float* weight, float eps) override {
    const int64_t head_dim = check_of_heads(x, num_heads);
    for_rows(x.rows, x.cols, [&](int64_t t) {
      for (int32_t h = 0; h < num_heads; ++h) {
        float* head = x.row<float>(t) + h * head_dim;
        rows_.rms_norm(head, DType::kF32, head, weight, head_dim, eps);
      }
    });
  }

  void matmul(Tensor y, Tensor x, const Weight& w, const float* bias) override {
    check_fp32(y, x.rows, w.n);
    check_tensor(x, x.dtype == activation_dtype(w.dtype), x.rows, w.k);
    cpu::matmul(isa_, team_, scratch_, y, x, w, bias);
  }

  void rope(Tensor x, int32_t num_heads, const int32_t* positions,
            const RopeTable& table) override {
    const int64_t head_dim = check_of_heads(x, num_heads);
    const int64_t pairs = table.rotary_dim / 2;
    CHECK(table.rotary_dim % 2 == 0 && table.rotary_dim <= head_dim, "rotary_dim");
    for_rows(x.rows, x.cols, [&](int64_t t) {
      CHECK(positions[t] >= 0 && positions[t] < table.num_positions,
            "position " + std::to_string(positions[t]));
      const int64_t angle = positions[t] * pairs;
      const cpu::RopeRow row = {table.cos + angle, table.sin + angle, pairs, table.adjacent};
      for (int32_t h = 0; h < num_heads; ++h) rows_.rope(x.row<float>(t) + h * head_dim, row);
    });
  }

  void store_kv(const KvLayer& kv, Tensor k, Tensor v, const int32_t* slots) override {
    check_kv(kv);
    const int64_t cols = int64_t{kv.num_heads} * kv.head_dim;
    check_fp32(k, k.rows, cols);
    check_fp32(v, k.rows, cols);
    const int64_t size = element_size(kv.dtype);
    for_rows(k.rows, 2 * cols, [&](int64_t t) {
      if (slots[t] == -1) return;
      const int64_t block = slots[t] / kv.block_size;
      const int64_t offset = slots[t] % kv.block_size;
      CHECK(slots[t] >= 0 && block < kv.num_blocks, "slot " + std::to_string(slots[t]));
      for (int32_t h = 0; h < kv.num_heads; ++h) {
        const int64_t row = (block * kv.num_heads + h) * kv.block_size + offset;
        const int64_t to = row * kv.head_dim * size;
        const int64_t from = int64_t{h} * kv.head_dim;
        rows_.convert(static_cast<std::byte*>(kv.k) + to, kv.dtype, k.row<float>(t) + from,
                      kv.head_dim);
        rows_.convert(static_cast<std::byte*>(kv.v) + to, kv.dtype, v.row<float>(t) + from,
                      kv.head_dim);
      }
    });
  }

  void attention(Tensor y, Tensor q, const KvLayer& kv, const BatchView& batch,
                 const HeadMap& heads, const AttentionSpec& spec) override {
    check_attention(kv, spec);
    check_tensor(y, y.dtype == DType::kF32 || y.dtype == DType::kBF16, q.rows, q.cols);
    check_fp32(q, batch.num_tokens, q.cols);
    check_heads(q, kv, heads);
    check_batch(kv, batch);
    if (q.rows == 0 || q.cols == 0) return;
    cpu::attention(isa_, team_, scratch_, ranges_, y, q, kv, batch, heads, spec);
  }

  void add(Tensor x, Tensor h) override {
    check_fp32(x, h.rows, h.cols);
    check_fp32(h, h.rows, h.cols);
    for_rows(x.rows, x.cols,
             [&](int64_t t) { rows_.add(x.row<float>(t), h.row<float>(t), x.cols); });
  }

  void scale(Tensor x, float factor) override {
    check_fp32(x, x.rows, x.cols);
    for_rows(x.rows, x.cols, [&](int64_t t) { rows_.scale(x.row<float>(t), factor, x.cols); });
  }

  void soft_cap(Tensor x, float cap) override {
    check_fp32(x, x.rows, x.cols);
    CHECK(cap > 0, "a cap of " + std::to_string(cap));
    for_rows(x.rows, kCostOfExp * x.cols,
             [&](int64_t t) { rows_.soft_cap(x.row<float>(t), cap, x.cols); });
  }

  void gated_activation(Tensor y, Tensor gate_up, Activation activation) override {
    check_tensor(y, is_activation(y.dtype), gate_up.rows, gate_up.cols / 2);
    check_fp32(gate_up, y.rows, 2 * y.cols);
    const auto kernel = activation == Activation::kSilu ? rows_.silu_mul : rows_.gelu_tanh_mul;
    for_rows(y.rows, kCostOfExp * y.cols, [&](int64_t t) {
      const float* gate = gate_up.row<float>(t);
      kernel(y.at(t), y.dtype, gate, gate + y.cols, y.cols);
    });
  }

  void gather_rows(Tensor y, Tensor x, const int32_t* rows) override {
    check_fp32(y, y.rows, x.cols);
    check_fp32(x, x.rows, x.cols);
    for_rows(y.rows, y.cols, [&](int64_t i) {
      CHECK(rows[i] >= 0 && rows[i] < x.rows, "row " + std::to_string(rows[i]));
      std::copy_n(x.row<float>(rows[i]), x.cols, y.row<float>(i));
    });
  }

 private:
  // Calls fn(row) for every row, on several threads where the rows are worth it.
  template <typename Function>
  void for_rows(int64_t rows, int64_t cols, const Function& fn) {
    if (cols == 0) return;
    const int64_t parts =
        std::min({rows * cols / kElementsPerThread, int64_t{team_.num_threads()}, rows});
    if (parts <= 1) {
      for (int64_t row = 0; row < rows; ++row) fn(row);
      return;
    }
    parallel_for(team_, parts, [&](int64_t part, int) {
      for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) fn(row);
    });
  }

  // D of x [T, heads · D] fp32.
  static int64_t check_of_heads(const Tensor& x, int32_t num_heads) {
    CHECK(num_heads > 0 && x.cols % num_heads == 0, shape(x));
    check_fp32(x, x.rows, x.cols);
    return x.cols / num_heads;
  }

  static void check_heads(const Tensor& q, const KvLayer& kv, const HeadMap& heads) {
    CHECK(q.cols % kv.head_dim == 0 && heads.group > 0, shape(q));
    const auto last = heads.first_head + static_cast<int32_t>(q.cols / kv.head_dim) - 1;
    CHECK(q.cols == 0 || (heads.first_head / heads.group >= heads.first_kv_head &&
                          last / heads.group < heads.first_kv_head + kv.num_heads),
          "query heads whose KV head is not in this shard");
  }

  static void check_batch(const KvLayer& kv, const BatchView& batch) {
    for (int32_t s = 0; s < batch.num_sequences; ++s) {
      const int32_t queries = batch.query_begin[s + 1] - batch.query_begin[s];
      const int64_t blocks = (int64_t{batch.context[s]} + kv.block_size - 1) / kv.block_size;
      CHECK(queries >= 0 && batch.query_begin[s] >= 0 &&
                batch.query_begin[s + 1] <= batch.num_tokens && batch.context[s] >= queries &&
                blocks <= batch.max_blocks,
            "sequence " + std::to_string(s) + " of the micro-batch");
      const int32_t* table = batch.block_tables + int64_t{s} * batch.max_blocks;
      CHECK(std::all_of(table, table + blocks,
                        [&](int32_t block) { return block >= 0 && block < kv.num_blocks; }),
            "block table of sequence " + std::to_string(s));
    }
  }

  const Isa isa_;
  Team team_;
  const cpu::RowKernels& rows_;
  cpu::Workspace scratch_;
  std::vector<cpu::TokenRange> ranges_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.threads < 1 || options.threads > kMaxThreads) {
    throw Error(Code::kInvalidArgument, "cannot make a CPU backend of " +
                                            std::to_string(options.threads) +
                                            " threads: 1 to 4096 are possible; set --threads");
  }
  return std::make_unique<CpuBackend>(cpu::choose_isa(options.isa), options.threads);
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Backend: the memory and the operations of one device; the only seam between a model and hardware.
//
// Legend: T tokens of the micro-batch, H hidden size, Q query heads and K key/value heads of this
// shard, D head dimension, F FFN columns of this shard, V vocabulary rows of this shard, S
// sequences. E is the activation type: bf16 for bf16 and quantised weights, else fp32
// (activation_dtype). The residual stream, qkv, gate_up and logits are fp32; inputs of matmuls are
// the E of the weight that they meet, and the KV cache has an E of its own.
//
// Guarantee: on one ISA path a row of any result is bit-identical whatever T, the other rows and
// threads. Zero-sized dimensions are legal and do nothing (matmul with K = 0 yields bias).
//
// A Backend is owned by one worker and used by its thread only. Operations are queued in order;
// call synchronize() before the host reads a result. No operation allocates once its shapes were
// seen.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/base/team.h"
#include "kernels/draw.h"
#include "kernels/dtype.h"
#include "kernels/tensor.h"

namespace trireme {

// A weight [N, K] in the backend's own layout: y = x · wᵀ. Made and filled before the first step.
struct Weight {
  Buffer storage;
  DType dtype = DType::kF32;
  int64_t n = 0;
  int64_t k = 0;
  // Of int8 and int4: channels before and behind these K that share a scale with some of them.
  int64_t lead = 0;
  int64_t tail = 0;
};

// One layer's paged cache on this shard: k and v are each [num_blocks, K, block_size, D] of E.
// Before it may stand learned keys and values, each [K, prefix_length, D] of E (P-tuning v2: Liu et
// al. 2021): they belong to no position, are not rotated, and every token sees all of them.
struct KvLayer {
  void* k = nullptr;
  void* v = nullptr;
  const void* prefix_k = nullptr;
  const void* prefix_v = nullptr;
  int32_t prefix_length = 0;
  DType dtype = DType::kF32;
  int32_t num_blocks = 0;
  int32_t num_heads = 0;  // K
  int32_t block_size = 0;
  int32_t head_dim = 0;  // D
};

// The micro-batch as device arrays. Sequence s owns tokens [query_begin[s], query_begin[s + 1]);
// its last token's position is context[s] - 1; block_tables[s · max_blocks + p / block_size] holds
// the block of position p. Keys of all positions below context[s] are stored before attention()
// runs.
struct BatchView {
  int32_t num_tokens = 0;
  int32_t num_sequences = 0;
  int32_t max_blocks = 0;
  int32_t max_queries = 0;                // tokens of the sequence that has most
  int32_t max_context = 0;                // largest of context[]
  const int32_t* token_ids = nullptr;     // [T]
  const int32_t* positions = nullptr;     // [T]
  const int32_t* slots = nullptr;         // [T] block · block_size + offset; -1: kept nowhere
  const int32_t* query_begin = nullptr;   // [S + 1]
  const int32_t* context = nullptr;       // [S]
  const int32_t* block_tables = nullptr;  // [S, max_blocks]
};

// cos and sin of every position: fp32 [context, rotary_dim / 2] each, in the device's memory.
struct RopeTable {
  Buffer storage;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int32_t num_positions = 0;
  int32_t rotary_dim = 0;
  bool adjacent = false;  // pairs (2i, 2i + 1); else (i, i + rotary_dim / 2)
};

// Where this shard's heads stand in the whole model: local query head i is global first_head + i
// and reads local KV head (first_head + i) / group - first_kv_head.
struct HeadMap {
  int32_t first_head = 0;
  int32_t first_kv_head = 0;
  int32_t group = 1;  // query heads that share a KV head
};

// What a layer's attention computes, beside its shapes.
struct AttentionSpec {
  float scale = 0;     // of q · k; 1 / sqrt(D) as a rule. Must be positive
  float softcap = 0;   // c > 0: a score s becomes c · tanh(s / c) (Gemma Team 2024)
  int32_t window = 0;  // w > 0: a token at p sees the positions (p - w, p] (Beltagy et al. 2020)
};

// Of a device with memory of its own, whoever uses the rest.
struct DeviceMemory {
  uint64_t free_bytes = 0, total_bytes = 0;
};

class Backend {
 public:
  // gelu_tanh: Hendrycks & Gimpel 2016, x / 2 · (1 + tanh(sqrt(2 / π) · (x + 0.044715 · x³))).
  enum class Activation { kSilu, kGeluTanh };

  virtual ~Backend() = default;

  virtual std::string name() const = 0;  // "cpu avx512_bf16, 2 threads"

  // ---- memory ----
  // Whether the host may read and write what allocate() gives; else upload() and download() must.
  virtual bool in_host_memory() const = 0;
  // Zeroed, aligned to 64 bytes at least. Throws kResourceExhausted with the number of bytes.
  virtual Buffer allocate(size_t bytes) = 0;
  // Makes the scratch that operations will need for this many query heads that read one KV head,
  // so that no step allocates; and what all scratch is now.
  virtual void reserve_workspace(int32_t heads_of_kv, int32_t head_dim);
  virtual size_t workspace_bytes() const { return 0; }
  // As the driver tells it now; nullopt: the host's memory is the device's.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual bool idle() { return true; }  // whether there is nothing to wait for
  virtual Team& team() = 0;             // of the host, between operations

  // ---- recordings ----
  // Whether replay() is faster than the operations one by one.
  virtual bool can_replay() const { return false; }
  // Queues what `operations` queues. Where the device has recordings it keeps one of it under `key`
  // and queues that from then on: equal keys must mean the same operations on the same memory, and
  // among them none that waits, allocates or copies from or to the host.
  virtual void replay(uint64_t /*key*/, const std::function<void()>& operations) { operations(); }
  // Forgets the recordings; of one that is being made replay() throws what `operations` throws
  // next. Before that goes which recordings hold on to, as they do to NCCL's communicators.
  virtual void drop_recordings() {}

  // ---- weights ----
  virtual Weight make_weight(DType dtype, int64_t n, int64_t k) = 0;
  // Stores rows [row, row + rows.rows) of w. rows [r, K] of w.dtype, in host memory, which may
  // change when it returns; for int8 and int4 [r, lead + K + tail] of fp32, bf16 or fp16.
  virtual void pack_rows(Weight& w, int64_t row, Tensor rows) = 0;
  // Where rows for pack_rows() are best made, until the next call; no data: anywhere.
  virtual Tensor rows_to_pack(DType dtype, int64_t rows, int64_t cols) {
    return {nullptr, dtype, rows, cols};
  }
  // A weight of int8 or int4: the input channels [first, first + k) of a matrix of `total`. Row by
  // row a group of kQuantGroup channels of the whole matrix has one scale, whoever holds its parts:
  //   scale = bf16(max |w| / m),  q = round(w / scale) in [-m, m],  m = 127 or 7
  // so that |w - q · scale| <= 0.5 · scale (rounded as fp32 does it; scales below 2^-126 are 0).
  // Multiplied with bf16 x. Throws kFailedPrecondition where the device has no such weights.
  virtual Weight make_quantised(DType dtype, int64_t n, int64_t k, int64_t first, int64_t total);

  // ---- operations ----
  // y[t, :] = row (ids[t] - first_row) of table, or zeros if this shard has no such row.
  //   y [T, H] fp32; ids [T]; table [V, H].
  virtual void embed(Tensor y, const int32_t* ids, const Weight& table, int32_t first_row) = 0;

  // y[t, :] = x[t, :] / sqrt(mean(x[t, :]²) + eps) · weight.  y [T, H] of E or fp32; x [T, H] fp32;
  // weight [H] fp32. Accumulates fp32. (Zhang & Sennrich 2019)
  virtual void rms_norm(Tensor y, Tensor x, const float* weight, float eps) = 0;

  // x += h, then y = rms_norm(x): the bits of add() and rms_norm(), x read once.  x, h [T, H] fp32.
  virtual void add_rms_norm(Tensor y, Tensor x, Tensor h, const float* weight, float eps) = 0;

  // rms_norm on each head of x [T, heads · D] fp32 alone, in place: mean over its D.  weight [D].
  virtual void rms_norm_heads(Tensor x, int32_t num_heads, const float* weight, float eps) = 0;

  // y[t, n] = Σ_k x[t, k] · w[n, k] + bias[n].  x [T, K] of activation_dtype(w.dtype); y [T, N]
  // fp32; bias [N] fp32 or null. Accumulates fp32 in ascending k, one chain of a fixed shape per
  // (dtype, ISA).
  virtual void matmul(Tensor y, Tensor x, const Weight& w, const float* bias) = 0;

  // Rotates in place the first rotary_dim channels of each of the heads of x [T, heads · D] fp32.
  // (Su et al. 2021; pairing as the table says.) positions[t] < table.num_positions.
  virtual void rope(Tensor x, int32_t num_heads, const int32_t* positions,
                    const RopeTable& table) = 0;

  // Writes k and v [T, K · D] fp32, rounded to kv.dtype, to the slots of the cache; those of a
  // token of slot -1 nowhere.
  virtual void store_kv(const KvLayer& kv, Tensor k, Tensor v, const int32_t* slots) = 0;

  // rope() of the heads of q and k, then store_kv(): the bits of both.  qkv [T, (Q + 2K) · D] fp32;
  // what stands in its k afterwards is open.
  virtual void rope_store_kv(Tensor qkv, const KvLayer& kv, const int32_t* positions,
                             const RopeTable& table, const int32_t* slots);

  // Causal attention of each token over the prefix and the positions of its own sequence up to its
  // own that lie in its window.
  //   y [T, Q · D] of E; q [T, Q · D] fp32. softmax(cap(q · k · scale)) · v, softmax in fp32, the
  //   prefix and then positions taken in fixed blocks, in order, whatever the chunking (decision
  //   5).
  virtual void attention(Tensor y, Tensor q, const KvLayer& kv, const BatchView& batch,
                         const HeadMap& heads, const AttentionSpec& spec) = 0;

  // x += h.  Both [T, H] fp32.
  virtual void add(Tensor x, Tensor h) = 0;

  // x *= factor.  x [T, H] fp32.
  virtual void scale(Tensor x, float factor) = 0;

  // x = cap · tanh(x / cap).  x [n, V] fp32; cap > 0.
  virtual void soft_cap(Tensor x, float cap) = 0;

  // y = activation(gate) · up, silu(x) = x / (1 + exp(-x)).  gate_up [T, 2F] fp32 with gate first;
  // y [T, F] of E. (Shazeer 2020)
  virtual void gated_activation(Tensor y, Tensor gate_up, Activation activation) = 0;

  // gate_up = x · wᵀ + bias, y = gated_activation(gate_up).  x [T, K] and w [2F, K] as matmul() has
  // them; gate_up [T, 2F] fp32, of which what stands in it afterwards is open; y [T, F] of E.
  virtual void matmul_gated(Tensor y, Tensor gate_up, Tensor x, const Weight& w, const float* bias,
                            Activation activation);

  // y[i, :] = x[rows[i], :].  y [n, H], x [T, H] fp32; rows [n].
  virtual void gather_rows(Tensor y, Tensor x, const int32_t* rows) = 0;

  // Draws from each row of logits [n, V] fp32 among the ids below logical_vocab_size. drawn, rows
  // and changes in the host's memory; it has waited when it returns. False, and nothing done, where
  // the host draws as fast, or the changes are too many.
  virtual bool sample(std::span<int32_t> drawn, Tensor logits, std::span<const DrawRow> rows,
                      std::span<const ScoreChange> changes, int32_t logical_vocab_size) {
    (void)drawn, (void)logits, (void)rows, (void)changes, (void)logical_vocab_size;
    return false;
  }
};

// What make_backend needs; a field that the device has no use for is ignored by it.
struct BackendOptions {
  std::string device = "cpu";  // a name of the list in backend.cc
  int threads = 1;             // cpu; cuda: of the host, at most 16, which loading uses
  std::string isa = "auto";    // cpu: "auto" or a name of cpu_isas(), for tests
  int device_index = 0;        // cuda: which of cuda_devices()
  bool deterministic = false;  // cuda: rows bit-identical whatever the batch, at a price
  bool record_steps = true;    // cuda: replay() replays
};

// Throws kInvalidArgument for a name not in the list, kFailedPrecondition for a device that this
// build or machine does not have.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

// ISA paths that this machine can run, slowest first: "avx2", "avx512", "avx512_bf16", "amx".
std::span<const std::string> cpu_isas();

}  // namespace trireme

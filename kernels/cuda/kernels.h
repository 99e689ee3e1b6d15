// SPDX-License-Identifier: Apache-2.0
// The device code of the CUDA backend, as functions that queue one kernel each on a stream. Shapes
// and pointers were checked by cuda_backend.cc; all pointers are device memory. The legend is that
// of kernels/backend.h. A launch that the driver refuses is found by the caller's cuda_check of
// cudaGetLastError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/sizes.h"

namespace trireme::cuda {

// ---- rows.cu, rope_kv.cu: operations on rows, each of which reads and writes once ----

void embed(cudaStream_t stream, const Tensor& y, const int32_t* ids, const Weight& table,
           int64_t table_stride, int32_t first_row);
void rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const float* weight,
              float eps);
void add_rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const Tensor& h,
                  const float* weight, float eps);
void rms_norm_heads(cudaStream_t stream, const Tensor& x, int32_t num_heads, const float* weight,
                    float eps);
void rope(cudaStream_t stream, const Tensor& x, int32_t num_heads, const int32_t* positions,
          const RopeTable& table);
void store_kv(cudaStream_t stream, const KvLayer& kv, const Tensor& k, const Tensor& v,
              const int32_t* slots);
// Both at once, as Backend::rope_store_kv. False, and nothing queued, where rows, channels or pairs
// do not come in fours.
bool rope_store_kv(cudaStream_t stream, const Tensor& qkv, const KvLayer& kv,
                   const int32_t* positions, const RopeTable& table, const int32_t* slots);
void add(cudaStream_t stream, const Tensor& x, const Tensor& h);
void scale(cudaStream_t stream, const Tensor& x, float factor);
void soft_cap(cudaStream_t stream, const Tensor& x, float cap);
void gated_activation(cudaStream_t stream, const Tensor& y, const Tensor& gate_up,
                      Backend::Activation activation);
void gather_rows(cudaStream_t stream, const Tensor& y, const Tensor& x, const int32_t* rows);
// y = x converted to y's type, and zeros in the columns of y beyond x's. fp16 saturates at its
// largest finite value.
void convert(cudaStream_t stream, const Tensor& y, const Tensor& x);
// y[t, n] += bias[n].
void add_bias(cudaStream_t stream, const Tensor& y, const float* bias);

// ---- matvec.cu: products of few rows, where reading the weight is all the time ----

// Rows of x that matvec takes.
constexpr int64_t kMatvecRows = 2;
// The same as Backend::matmul. Row stride of w in elements. False, and nothing queued, where the
// shape is not its: T > kMatvecRows, or rows of x or w that are not aligned to 16 bytes.
bool matvec(cudaStream_t stream, const Tensor& y, const Tensor& x, const Weight& w,
            int64_t w_stride, const float* bias);
// The same with y as Backend::matmul_gated has it.
bool gated_matvec(cudaStream_t stream, const Tensor& y, const Tensor& x, const Weight& w,
                  int64_t w_stride, const float* bias, Backend::Activation activation);

// ---- quantise.cu: int8 and int4 ----

// Rows [r, lead + K + tail] of fp32, bf16 or fp16 become rows [row, row + r) of w.
void quantise(cudaStream_t stream, const Weight& w, int64_t row, const Tensor& rows);
// y [r, K] bf16 = rows [row, row + r) of w; row a multiple of kQuantRows. Rows of y are aligned to
// 16 bytes.
void dequantise(cudaStream_t stream, const Tensor& y, const Weight& w, int64_t row);

// ---- quantised.cu ----

// The same as Backend::matmul, of up to kQuantisedTokens rows. Rows of x are aligned to 16 bytes. K
// and the lead of w are multiples of 8, or x has all channels of w's groups.
struct QuantisedProduct {
  Tensor y, x;
  const Weight& w;
  const float* bias = nullptr;
  bool all_channels = false;
  void* partial = nullptr;  // quantised_partial_bytes(…) bytes
  int* counters = nullptr;  // kQuantisedCounterBytes of zeros, and zeros again behind it
};

void quantised_matmul(cudaStream_t stream, const QuantisedProduct& product);

// ---- sampling.cu ----

struct SampleArguments {
  Tensor logits;  // [n, V] fp32
  int32_t logical_vocab_size = 0;
  const DrawRow* rows = nullptr;         // [n]
  const ScoreChange* changes = nullptr;  // of all rows
  void* scratch = nullptr;               // 20 · n · V bytes
  int32_t* drawn = nullptr;              // [n]
};

void sample(cudaStream_t stream, const SampleArguments& arguments);

// ---- peer_sum.cu: sums over GPUs that write into each other's memory ----

// A group as one of its ranks sees it.
struct PeerView {
  // peer_memory_bytes(size) of each rank, where this GPU reaches them: zeros at first, but for the
  // number of the first sum, which is not 0, in the first eight bytes.
  std::byte* memory[kMostPeers] = {};
  int32_t rank = 0;
  int32_t size = 0;
  const uint64_t* given_up = nullptr;  // in the host's memory: not zero once nothing is waited for
};

// x = Σ over ranks of x, added in fp32 in rank order, and rounded once where x is bf16 or fp16: the
// same bits in every rank, by either way. All ranks call the same in the same order, with as many
// elements, one at least, that lie beside each other. At once: of up to kSumAtOnceBytes; in parts:
// of up to kSumPieceBytes. When the kernel returns because the host gave up x is anything.
void sum_at_once(cudaStream_t stream, const PeerView& view, const Tensor& x);
void sum_in_parts(cudaStream_t stream, const PeerView& view, const Tensor& x);

// ---- attention.cu ----

struct AttentionArguments {
  Tensor y;  // [T, Q · D] of bf16 or fp32
  Tensor q;  // [T, Q · D] fp32
  KvLayer kv;
  BatchView batch;
  HeadMap heads;
  AttentionSpec spec;
  float* partial = nullptr;  // attention_scratch_bytes(…) bytes
};

// Of the results of parts of a context, before they are joined. Zero if no sequence is split.
int64_t attention_scratch_bytes(const BatchView& batch, int32_t prefix, int64_t num_heads,
                                int32_t head_dim);
void attention(cudaStream_t stream, const AttentionArguments& arguments);

}  // namespace trireme::cuda

// SPDX-License-Identifier: Apache-2.0
// The device code of the CUDA backend, as functions that queue one kernel each on a stream. Shapes
// and pointers were checked by cuda_backend.cc; all pointers are device memory. The legend is that
// of kernels/backend.h. A launch that the driver refuses is found by the caller's cuda_check of
// cudaGetLastError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/backend.h"

namespace trireme::cuda {

// ---- rows.cu: memory-bound operations on rows; each reads its inputs once and writes once ----

void embed(cudaStream_t stream, const Tensor& y, const int32_t* ids, const Weight& table,
           int64_t table_stride, int32_t first_row);
void rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const float* weight,
              float eps);
void rms_norm_heads(cudaStream_t stream, const Tensor& x, int32_t num_heads, const float* weight,
                    float eps);
void rope(cudaStream_t stream, const Tensor& x, int32_t num_heads, const int32_t* positions,
          const RopeTable& table);
void store_kv(cudaStream_t stream, const KvLayer& kv, const Tensor& k, const Tensor& v,
              const int32_t* slots);
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

// ---- attention.cu ----

// Positions of a part of one sequence's context that a cta of the decode kernel takes; parts are at
// fixed positions, so that a row's bits do not depend on its company.
constexpr int32_t kSplitPositions = 256;

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

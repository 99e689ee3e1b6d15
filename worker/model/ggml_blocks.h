// SPDX-License-Identifier: Apache-2.0
// The quantised block layouts of GGUF files, expanded to fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trireme {

// Each expands `blocks` blocks at `data`, which may lie at any address, to `out`: 32 values a block
// for the types without K, 256 for those with. Any bytes are a valid block. The values are those of
// the format's reference (ggml, and its twin in the Python package gguf) bit for bit.
void decode_q4_0(const std::byte* data, int64_t blocks, float* out);
void decode_q4_1(const std::byte* data, int64_t blocks, float* out);
void decode_q5_0(const std::byte* data, int64_t blocks, float* out);
void decode_q5_1(const std::byte* data, int64_t blocks, float* out);
void decode_q8_0(const std::byte* data, int64_t blocks, float* out);
void decode_q2_k(const std::byte* data, int64_t blocks, float* out);
void decode_q3_k(const std::byte* data, int64_t blocks, float* out);
void decode_q4_k(const std::byte* data, int64_t blocks, float* out);
void decode_q5_k(const std::byte* data, int64_t blocks, float* out);
void decode_q6_k(const std::byte* data, int64_t blocks, float* out);

}  // namespace trireme

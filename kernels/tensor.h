// SPDX-License-Identifier: Apache-2.0
// Buffer owns device memory; Tensor is a typed two-dimensional view that owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/dtype.h"

namespace trireme {

// Memory of one device. Movable; frees itself through the function its Backend gave it.
class Buffer {
 public:
  using Free = void (*)(void* data, size_t bytes);

  Buffer() = default;
  Buffer(void* data, size_t bytes, Free free) : data_(data), bytes_(bytes), free_(free) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) free_(data_, bytes_);
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Free free_ = nullptr;
};

// Row-major [rows, cols]; element (i, j) lies at data + (i · stride + j) · element_size(dtype).
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next

  Tensor() = default;
  Tensor(void* data_in, DType dtype_in, int64_t rows_in, int64_t cols_in)
      : data(data_in), dtype(dtype_in), rows(rows_in), cols(cols_in), stride(cols_in) {}

  explicit operator bool() const { return data != nullptr; }
  void* at(int64_t row, int64_t col = 0) const {
    return static_cast<std::byte*>(data) + (row * stride + col) * element_size(dtype);
  }
  template <typename T>
  T* row(int64_t index) const {
    return static_cast<T*>(data) + index * stride;
  }
  Tensor row_range(int64_t begin, int64_t count) const {
    Tensor view = *this;
    view.data = at(begin);
    view.rows = count;
    return view;
  }
  Tensor column_range(int64_t begin, int64_t count) const {
    Tensor view = *this;
    view.data = at(0, begin);
    view.cols = count;
    return view;
  }
};

}  // namespace trireme

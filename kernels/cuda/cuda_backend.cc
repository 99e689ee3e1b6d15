// SPDX-License-Identifier: Apache-2.0
// Checks the shapes and queues the kernels on one stream. Weights are row-major [N, K] with rows of
// a multiple of kWeightRowBytes, so that every row is aligned for tensor cores.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/backend_checks.h"
#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/weight_staging.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

using cuda::cuda_check;

constexpr int64_t kAlignment = 16;  // of data and rows that cuBLASLt takes, in bytes
constexpr int32_t kHeadDimMax = 512;

void free_device(void* data, size_t) { cudaFree(data); }
void free_host(void* data, size_t) { cudaFreeHost(data); }

bool aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % kAlignment == 0 &&
         t.stride * element_size(t.dtype) % kAlignment == 0;
}

// Memory that an operation needs while it runs. Grows to the largest size seen; what was too small
// stays until the stream has passed it: to wait for that here could mean to wait for another rank.
class Scratch {
 public:
  void* get(size_t bytes) {
    if (bytes <= buffer_.bytes()) return buffer_.data();
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, bytes), "allocate the GPU's scratch memory");
    outgrown_.push_back(std::move(buffer_));
    buffer_ = Buffer(data, bytes, free_device);
    return data;
  }
  // REQUIRES: the stream is idle.
  void free_outgrown() { outgrown_.clear(); }

 private:
  Buffer buffer_;
  std::vector<Buffer> outgrown_;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaDevice& device, int index, bool deterministic)
      : name_("cuda " + std::to_string(index) + ", " + device.name),
        deterministic_(deterministic),
        stream_(make_stream(index)),
        cublas_(deterministic) {
    void* data = nullptr;
    cuda_check(cudaMallocHost(&data, kPinnedBytes), "allocate pinned memory");
    pinned_ = Buffer(data, kPinnedBytes, free_host);
  }

  ~CudaBackend() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return name_; }
  bool in_host_memory() const override { return false; }
  cudaStream_t stream() const { return stream_; }

  Buffer allocate(size_t bytes) override {
    if (bytes == 0) return {};
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, bytes),
               ("allocate " + std::to_string(bytes) + " bytes of the GPU's memory").c_str());
    Buffer buffer(data, bytes, free_device);
    cuda_check(cudaMemsetAsync(data, 0, bytes, stream_), "clear the GPU's memory");
    return buffer;
  }

  // Small arrays of a step go through pinned memory, so that the host need not wait for them.
  void upload(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return;
    const void* from = host;
    if (bytes <= kPinnedBytes / 2) {
      if (pinned_used_ + bytes > kPinnedBytes) {
        synchronize();  // earlier uploads have left
        pinned_used_ = 0;
      }
      auto* copy = static_cast<std::byte*>(pinned_.data()) + pinned_used_;
      std::memcpy(copy, host, bytes);
      pinned_used_ += static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kAlignment));
      from = copy;
    }
    cuda_check(cudaMemcpyAsync(device, from, bytes, cudaMemcpyHostToDevice, stream_),
               "copy to the GPU");
    if (from == host) synchronize();
  }

  void download(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_),
               "copy from the GPU");
    synchronize();
  }

  void synchronize() override {
    cuda_check(cudaStreamSynchronize(stream_), "wait for the GPU");
    pinned_used_ = 0;
    for (Scratch* scratch : {&input_, &output_, &partial_}) scratch->free_outgrown();
  }

  Weight make_weight(DType dtype, int64_t n, int64_t k) override {
    CHECK(dtype != DType::kI32 && n >= 0 && k >= 0, dtype_name(dtype));
    return {allocate(static_cast<size_t>(cuda_weight_bytes(dtype, n, k))), dtype, n, k};
  }

  void pack_rows(Weight& w, int64_t row, Tensor rows) override {
    check_tensor(rows, rows.dtype == w.dtype, rows.rows, w.k);
    CHECK(row >= 0 && rows.rows >= 0 && row <= w.n - rows.rows, "rows beyond the weight");
    if (rows.rows == 0 || w.k == 0) return;
    const auto pitch = static_cast<size_t>(cuda_weight_row_bytes(w.dtype, w.k));
    auto* to = static_cast<std::byte*>(w.storage.data()) + static_cast<size_t>(row) * pitch;
    weights_.send(stream_, to, pitch, rows);
  }

  void embed(Tensor y, const int32_t* ids, const Weight& table, int32_t first_row) override {
    check_fp32(y, y.rows, table.k);
    cuda::embed(stream_, y, ids, table, stride(table), first_row);
    check_launch("embed");
  }

  void rms_norm(Tensor y, Tensor x, const float* weight, float eps) override {
    check_tensor(y, is_activation(y.dtype), x.rows, x.cols);
    check_fp32(x, x.rows, x.cols);
    cuda::rms_norm(stream_, y, x, weight, eps);
    check_launch("rms_norm");
  }

  void rms_norm_heads(Tensor x, int32_t num_heads, const float* weight, float eps) override {
    check_of_heads(x, num_heads);
    cuda::rms_norm_heads(stream_, x, num_heads, weight, eps);
    check_launch("rms_norm_heads");
  }

  void matmul(Tensor y, Tensor x, const Weight& w, const float* bias) override {
    check_fp32(y, x.rows, w.n);
    check_tensor(x, x.dtype == activation_dtype(w.dtype), x.rows, w.k);
    if (y.rows == 0 || y.cols == 0) return;
    if (w.k == 0) return matmul_of_nothing(y, bias);
    if (x.dtype != w.dtype || !aligned(x)) x = converted(x, w);
    if (!deterministic_ && cuda::matvec(stream_, y, x, w, stride(w), bias)) {
      return check_launch("matvec");
    }
    multiply(y, x, w, bias);
  }

  void rope(Tensor x, int32_t num_heads, const int32_t* positions,
            const RopeTable& table) override {
    check_of_heads(x, num_heads);
    CHECK(table.rotary_dim % 2 == 0 && table.rotary_dim <= x.cols / num_heads, "rotary_dim");
    cuda::rope(stream_, x, num_heads, positions, table);
    check_launch("rope");
  }

  void store_kv(const KvLayer& kv, Tensor k, Tensor v, const int32_t* slots) override {
    check_kv(kv);
    check_head_dim(kv);
    const int64_t cols = int64_t{kv.num_heads} * kv.head_dim;
    check_fp32(k, k.rows, cols);
    check_fp32(v, k.rows, cols);
    cuda::store_kv(stream_, kv, k, v, slots);
    check_launch("store_kv");
  }

  void attention(Tensor y, Tensor q, const KvLayer& kv, const BatchView& batch,
                 const HeadMap& heads, const AttentionSpec& spec) override {
    check_attention(kv, spec);
    check_head_dim(kv);
    check_tensor(y, is_activation(y.dtype), q.rows, q.cols);
    check_fp32(q, batch.num_tokens, q.cols);
    CHECK(q.cols % kv.head_dim == 0 && heads.group > 0, shape(q));
    if (q.rows == 0 || q.cols == 0) return;
    const int64_t bytes =
        cuda::attention_scratch_bytes(batch, kv.prefix_length, q.cols / kv.head_dim, kv.head_dim);
    auto* partial = static_cast<float*>(partial_.get(static_cast<size_t>(bytes)));
    cuda::attention(stream_, {y, q, kv, batch, heads, spec, partial});
    check_launch("attention");
  }

  void add(Tensor x, Tensor h) override {
    check_fp32(x, h.rows, h.cols);
    check_fp32(h, h.rows, h.cols);
    cuda::add(stream_, x, h);
    check_launch("add");
  }

  void scale(Tensor x, float factor) override {
    check_fp32(x, x.rows, x.cols);
    cuda::scale(stream_, x, factor);
    check_launch("scale");
  }

  void soft_cap(Tensor x, float cap) override {
    check_fp32(x, x.rows, x.cols);
    CHECK(cap > 0, "a cap of " + std::to_string(cap));
    cuda::soft_cap(stream_, x, cap);
    check_launch("soft_cap");
  }

  void gated_activation(Tensor y, Tensor gate_up, Activation activation) override {
    check_tensor(y, is_activation(y.dtype), gate_up.rows, gate_up.cols / 2);
    check_fp32(gate_up, y.rows, 2 * y.cols);
    cuda::gated_activation(stream_, y, gate_up, activation);
    check_launch("gated_activation");
  }

  void gather_rows(Tensor y, Tensor x, const int32_t* rows) override {
    check_fp32(y, y.rows, x.cols);
    check_fp32(x, x.rows, x.cols);
    cuda::gather_rows(stream_, y, x, rows);
    check_launch("gather_rows");
  }

 private:
  static constexpr size_t kPinnedBytes = 8u << 20;

  static cudaStream_t make_stream(int index) {
    cuda_check(cudaSetDevice(index), "use the GPU");
    cudaStream_t stream = nullptr;
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a CUDA stream");
    return stream;
  }

  static void check_launch(const char* operation) {
    const cudaError_t code = cudaGetLastError();
    if (code != cudaSuccess) cuda_check(code, (std::string("run ") + operation).c_str());
  }

  static void check_head_dim(const KvLayer& kv) {
    if (kv.head_dim > kHeadDimMax) {
      throw Error(Code::kInvalidArgument, "cannot run on a GPU: the model's heads have " +
                                              std::to_string(kv.head_dim) +
                                              " channels, at most 512 are possible");
    }
  }

  static void check_of_heads(const Tensor& x, int32_t num_heads) {
    CHECK(num_heads > 0 && x.cols % num_heads == 0, shape(x));
    check_fp32(x, x.rows, x.cols);
  }

  // Elements from one row of w to the next.
  static int64_t stride(const Weight& w) {
    return cuda_weight_row_bytes(w.dtype, w.k) / element_size(w.dtype);
  }

  // x in w's type, with w's padding, where the tensor cores can read it.
  Tensor converted(const Tensor& x, const Weight& w) {
    const int64_t cols = stride(w);
    const auto bytes = static_cast<size_t>(x.rows * cols * element_size(w.dtype));
    Tensor copy(input_.get(bytes), w.dtype, x.rows, cols);
    cuda::convert(stream_, copy, x);
    copy.cols = x.cols;
    return copy;
  }

  void multiply(Tensor y, const Tensor& x, const Weight& w, const float* bias) {
    Tensor out = y;
    if (!aligned(y)) {
      const int64_t cols = round_up(y.cols, kAlignment / element_size(DType::kF32));
      const auto bytes = static_cast<size_t>(y.rows * cols * element_size(DType::kF32));
      out = Tensor(output_.get(bytes), DType::kF32, y.rows, cols);
      out.cols = y.cols;
    }
    const bool fused = bias != nullptr && reinterpret_cast<uintptr_t>(bias) % kAlignment == 0;
    cublas_.multiply(stream_, {out, x, w.storage.data(), w.n, stride(w), fused ? bias : nullptr});
    if (out.data != y.data) cuda::convert(stream_, y, out);
    if (bias != nullptr && !fused) cuda::add_bias(stream_, y, bias);
    check_launch("matmul");
  }

  void matmul_of_nothing(const Tensor& y, const float* bias) {
    cuda_check(cudaMemset2DAsync(y.data, static_cast<size_t>(y.stride) * sizeof(float), 0,
                                 static_cast<size_t>(y.cols) * sizeof(float),
                                 static_cast<size_t>(y.rows), stream_),
               "clear a result");
    if (bias != nullptr) cuda::add_bias(stream_, y, bias);
    check_launch("matmul");
  }

  const std::string name_;
  const bool deterministic_;
  cudaStream_t stream_;
  cuda::Cublas cublas_;
  Buffer pinned_;  // uploads on their way
  size_t pinned_used_ = 0;
  cuda::WeightStaging weights_;
  Scratch input_, output_, partial_;
};

}  // namespace

cudaStream_t cuda::stream_of(Backend& backend) {
  auto* const found = dynamic_cast<CudaBackend*>(&backend);
  CHECK(found != nullptr, "the stream of " + backend.name());
  return found->stream();
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  const CudaDevices found = cuda_devices();
  if (found.devices.empty()) {
    throw Error(Code::kFailedPrecondition, "cannot make a CUDA backend: found no device (" +
                                               found.reason +
                                               "); look at nvidia-smi, or run with CPU ranks");
  }
  const auto count = static_cast<int>(found.devices.size());
  if (options.device_index < 0 || options.device_index >= count) {
    throw Error(Code::kInvalidArgument, "cannot make a CUDA backend: there is no device " +
                                            std::to_string(options.device_index) +
                                            ", found are 0 to " + std::to_string(count - 1));
  }
  const CudaDevice& device = found.devices[static_cast<size_t>(options.device_index)];
  return std::make_unique<CudaBackend>(device, options.device_index, options.deterministic);
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Checks the shapes and queues the kernels on one stream. Weights are row-major [N, K] with rows of
// a multiple of kWeightRowBytes, so that every row is aligned for tensor cores; those of int8 and
// int4 are as quantised.cuh says.
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
#include "kernels/cuda/recordings.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/weight_staging.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

using cuda::cuda_check;

constexpr int64_t kAlignment = 16;  // of data and rows that cuBLASLt takes, in bytes
constexpr int32_t kHeadDimMax = 512;
constexpr int kMostThreads = 16;  // read faster than a bus of 64 GB/s copies

bool aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % kAlignment == 0 &&
         t.stride * element_size(t.dtype) % kAlignment == 0;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaDevice& device, const BackendOptions& options)
      : name_("cuda " + std::to_string(options.device_index) + ", " + device.name),
        deterministic_(options.deterministic),
        record_steps_(options.record_steps),
        team_(std::clamp(options.threads, 1, kMostThreads)),
        stream_(make_stream(options.device_index)),
        cublas_(options.deterministic) {}

  ~CudaBackend() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return name_; }
  bool in_host_memory() const override { return false; }
  cudaStream_t stream() const { return stream_; }

  size_t workspace_bytes() const override {
    return static_cast<size_t>(kCublasWorkspaceBytes) + input_.bytes() + output_.bytes() +
           partial_.bytes() + draws_.bytes() + unpacked_.bytes() + counters_.bytes();
  }

  std::optional<DeviceMemory> device_memory() const override {
    size_t free = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free, &total), "ask how much of the GPU's memory is free");
    return DeviceMemory{free, total};
  }

  Buffer allocate(size_t bytes) override {
    if (bytes == 0) return {};
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, bytes),
               ("allocate " + std::to_string(bytes) + " bytes of the GPU's memory").c_str());
    Buffer buffer(data, bytes, cuda::free_device);
    cuda_check(cudaMemsetAsync(data, 0, bytes, stream_), "clear the GPU's memory");
    return buffer;
  }

  // Small arrays of a step go through pinned memory, so that the host need not wait for them.
  void upload(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return;
    std::byte* copy = pinned_.take(bytes);
    if (copy == nullptr && bytes <= cuda::Pinned::kBytes) {
      synchronize();  // earlier uploads have left
      copy = pinned_.take(bytes);
    }
    if (copy != nullptr) std::memcpy(copy, host, bytes);
    cuda_check(cudaMemcpyAsync(device, copy != nullptr ? copy : host, bytes, cudaMemcpyHostToDevice,
                               stream_),
               "copy to the GPU");
    if (copy == nullptr) synchronize();
  }

  void download(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    std::byte* const copy = pinned_.take(bytes);
    cuda_check(cudaMemcpyAsync(copy != nullptr ? copy : host, device, bytes, cudaMemcpyDeviceToHost,
                               stream_),
               "copy from the GPU");
    synchronize();  // nobody takes pinned memory before the bytes are out of it
    if (copy != nullptr) std::memcpy(host, copy, bytes);
  }

  void synchronize() override {
    cuda_check(cudaStreamSynchronize(stream_), "wait for the GPU");
    pinned_.clear();
    for (cuda::Scratch* scratch : {&input_, &output_, &partial_, &draws_, &unpacked_})
      scratch->free_outgrown();
  }

  bool idle() override {
    const cudaError_t code = cudaStreamQuery(stream_);
    if (code == cudaErrorNotReady) {
      cudaGetLastError();  // no error, but the runtime keeps it as if it were
      return false;
    }
    cuda_check(code, "wait for the GPU");
    return true;
  }

  Team& team() override { return team_; }

  bool can_replay() const override { return record_steps_; }

  void replay(uint64_t key, const std::function<void()>& operations) override {
    recordings_.replay(stream_, key,
                       input_.moves() + output_.moves() + partial_.moves() + unpacked_.moves(),
                       operations);
  }
  void drop_recordings() override { recordings_.drop(); }

  Weight make_weight(DType dtype, int64_t n, int64_t k) override {
    CHECK(dtype != DType::kI32 && !is_quantised(dtype) && n >= 0 && k >= 0, dtype_name(dtype));
    return {allocate(static_cast<size_t>(cuda_weight_bytes(dtype, n, k))), dtype, n, k};
  }

  Weight make_quantised(DType dtype, int64_t n, int64_t k, int64_t first, int64_t total) override {
    CHECK(is_quantised(dtype) && n >= 0 && k >= 0 && first >= 0 && first <= total - k &&
              n < INT32_MAX && total < INT32_MAX,
          dtype_name(dtype));
    const auto get = [](cuda::Scratch& scratch, int64_t bytes) {
      scratch.get(static_cast<size_t>(bytes));
    };
    const int64_t lead = first % kQuantGroup;
    get(unpacked_, quantised_unpacked_bytes(n, k));
    get(partial_, quantised_partial_bytes(n, k, lead));
    get(input_, quantised_input_bytes(k, lead));
    if (counters_.bytes() == 0) counters_ = allocate(kCounterBytes);
    const auto bytes = static_cast<size_t>(quantised_weight_bytes(dtype, n, k, first));
    const int64_t tail = std::min(round_up(first + k, kQuantGroup), total) - (first + k);
    return {allocate(bytes), dtype, n, k, lead, tail};
  }

  void pack_rows(Weight& w, int64_t row, Tensor rows) override {
    if (is_quantised(w.dtype)) return quantise_rows(w, row, rows);
    check_tensor(rows, rows.dtype == w.dtype, rows.rows, w.k);
    CHECK(row >= 0 && rows.rows >= 0 && row <= w.n - rows.rows, "rows beyond the weight");
    if (rows.rows == 0 || w.k == 0) return;
    const auto pitch = static_cast<size_t>(cuda_weight_row_bytes(w.dtype, w.k));
    auto* to = static_cast<std::byte*>(w.storage.data()) + static_cast<size_t>(row) * pitch;
    weights_.send(stream_, to, pitch, rows);
  }

  Tensor rows_to_pack(DType dtype, int64_t rows, int64_t cols) override {
    const int64_t pitch = cuda_weight_row_bytes(dtype, cols);
    Tensor made(weights_.part(rows, pitch, cols * element_size(dtype)), dtype, rows, cols);
    made.stride = pitch / element_size(dtype);
    return made;
  }

  void embed(Tensor y, const int32_t* ids, const Weight& table, int32_t first_row) override {
    check_fp32(y, y.rows, table.k);
    CHECK(!is_quantised(table.dtype), dtype_name(table.dtype));
    cuda::embed(stream_, y, ids, table, stride(table), first_row);
    check_launch("embed");
  }

  void rms_norm(Tensor y, Tensor x, const float* weight, float eps) override {
    check_tensor(y, is_activation(y.dtype), x.rows, x.cols);
    check_fp32(x, x.rows, x.cols);
    cuda::rms_norm(stream_, y, x, weight, eps);
    check_launch("rms_norm");
  }

  void add_rms_norm(Tensor y, Tensor x, Tensor h, const float* weight, float eps) override {
    check_add_rms_norm(y, x, h);
    cuda::add_rms_norm(stream_, y, x, h, weight, eps);
    check_launch("add_rms_norm");
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
    if (is_quantised(w.dtype)) return matmul_quantised(y, x, w, bias);
    if (x.dtype != w.dtype || !aligned(x)) x = converted(x, w.dtype, stride(w));
    if (!deterministic_ && cuda::matvec(stream_, y, x, w, stride(w), bias)) {
      return check_launch("matvec");
    }
    multiply(y, x, w.storage.data(), stride(w), bias);
  }

  void matmul_gated(Tensor y, Tensor gate_up, Tensor x, const Weight& w, const float* bias,
                    Activation activation) override {
    check_tensor(y, is_activation(y.dtype), x.rows, w.n / 2);
    const bool few = !deterministic_ && x.rows > 0 && x.rows <= cuda::kMatvecRows;
    if (few && w.k > 0 && !is_quantised(w.dtype)) {
      check_tensor(x, x.dtype == activation_dtype(w.dtype), x.rows, w.k);
      const Tensor in = x.dtype != w.dtype || !aligned(x) ? converted(x, w.dtype, stride(w)) : x;
      if (cuda::gated_matvec(stream_, y, in, w, stride(w), bias, activation)) {
        return check_launch("gated_matvec");
      }
    }
    Backend::matmul_gated(y, gate_up, x, w, bias, activation);
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

  void rope_store_kv(Tensor qkv, const KvLayer& kv, const int32_t* positions,
                     const RopeTable& table, const int32_t* slots) override {
    check_kv(kv);
    check_head_dim(kv);
    check_of_heads(qkv, static_cast<int32_t>(qkv.cols / kv.head_dim));
    CHECK(qkv.cols >= int64_t{2} * kv.num_heads * kv.head_dim && table.rotary_dim <= kv.head_dim &&
              table.rotary_dim % 2 == 0,
          shape(qkv));
    if (!cuda::rope_store_kv(stream_, qkv, kv, positions, table, slots)) {
      return Backend::rope_store_kv(qkv, kv, positions, table, slots);
    }
    check_launch("rope_store_kv");
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

  bool sample(std::span<int32_t> drawn, Tensor logits, std::span<const DrawRow> rows,
              std::span<const ScoreChange> changes, int32_t logical_vocab_size) override {
    const auto count = static_cast<int64_t>(rows.size());
    check_fp32(logits, count, logits.cols);
    CHECK(drawn.size() == rows.size() && logical_vocab_size <= logits.cols, shape(logits));
    if (rows.empty()) return true;
    if (static_cast<int64_t>(changes.size()) > kChangesOfDraw) return false;
    const size_t row_bytes = padded(rows.size_bytes());
    const size_t change_bytes = static_cast<size_t>(kChangesOfDraw) * sizeof(ScoreChange);
    auto* at = static_cast<std::byte*>(
        draws_.get(static_cast<size_t>(cuda_draw_scratch_bytes(count, logits.cols))));
    auto* const ids = reinterpret_cast<int32_t*>(at + row_bytes + change_bytes);
    upload(at, rows.data(), rows.size_bytes());
    upload(at + row_bytes, changes.data(), changes.size_bytes());
    // Not all at once, so that the scratch stays small.
    for (int64_t first = 0; first < count; first += kRowsOfDraw) {
      const int64_t some = std::min(kRowsOfDraw, count - first);
      cuda::sample(stream_,
                   {logits.row_range(first, some), logical_vocab_size,
                    reinterpret_cast<const DrawRow*>(at) + first,
                    reinterpret_cast<const ScoreChange*>(at + row_bytes),
                    at + row_bytes + change_bytes + padded(drawn.size_bytes()), ids + first});
    }
    check_launch("sample");
    download(drawn.data(), ids, drawn.size_bytes());
    return true;
  }

 private:
  static constexpr size_t kCounterBytes = static_cast<size_t>(kQuantisedCounterBytes);

  static cudaStream_t make_stream(int index) {
    cuda_check(cudaSetDevice(index), "use the GPU");
    cudaStream_t stream = nullptr;
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a CUDA stream");
    return stream;
  }

  static_assert(sizeof(DrawRow) == kDrawRowBytes && sizeof(ScoreChange) == kScoreChangeBytes);
  static size_t padded(size_t bytes) {
    return static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kAlignment));
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

  // x in a weight's type, with its padding, where the tensor cores can read it.
  Tensor converted(const Tensor& x, DType dtype, int64_t cols) {
    const auto bytes = static_cast<size_t>(x.rows * cols * element_size(dtype));
    Tensor copy(input_.get(bytes), dtype, x.rows, cols);
    cuda::convert(stream_, copy, x);
    copy.cols = x.cols;
    return copy;
  }

  // The rows go to the device as they are and become integers there.
  void quantise_rows(const Weight& w, int64_t row, const Tensor& rows) {
    check_tensor(
        rows, rows.dtype == DType::kF32 || rows.dtype == DType::kBF16 || rows.dtype == DType::kF16,
        rows.rows, w.lead + w.k + w.tail);
    CHECK(row >= 0 && rows.rows >= 0 && row <= w.n - rows.rows, "rows beyond the weight");
    if (w.k == 0) return;
    const int64_t pitch = cuda_weight_row_bytes(rows.dtype, rows.cols);
    const int64_t at_once = static_cast<int64_t>(unpacked_.bytes()) / pitch;
    for (int64_t first = 0; first < rows.rows; first += at_once) {
      const Tensor some = rows.row_range(first, std::min(at_once, rows.rows - first));
      auto* const to = static_cast<std::byte*>(unpacked_.get(static_cast<size_t>(pitch)));
      Tensor sent(to, some.dtype, some.rows, some.cols);
      sent.stride = pitch / element_size(some.dtype);
      weights_.send(stream_, to, static_cast<size_t>(pitch), some);
      cuda::quantise(stream_, w, row + first, sent);
      check_launch("quantise");
    }
    // A product may read its weight while the kernel before it ends, but not while this is cleared.
    cuda_check(cudaMemsetAsync(counters_.data(), 0, kCounterBytes, stream_), "clear counters");
  }

  void matmul_quantised(Tensor y, Tensor x, const Weight& w, const float* bias) {
    if (deterministic_ || x.rows > kQuantisedTokens) return multiply_unpacked(y, x, w, bias);
    const bool whole = quantised_input_bytes(w.k, w.lead) == 0;
    const Tensor in = whole && aligned(x) ? x : in_groups(x, w);
    cuda::quantised_matmul(stream_, {y, in, w, bias, in.data != x.data, partial_.get(0),
                                     static_cast<int*>(counters_.data())});
    check_launch("matmul of integers");
  }

  // x with zeros in place of the channels of w's groups that it has not.
  Tensor in_groups(const Tensor& x, const Weight& w) {
    const int64_t cols = quantised_groups(w.k, w.lead) * kQuantGroup;
    const auto bytes = static_cast<size_t>(x.rows * cols * element_size(x.dtype));
    const Tensor copy(input_.get(bytes), x.dtype, x.rows, cols);
    cuda_check(cudaMemsetAsync(copy.data, 0, bytes, stream_), "clear an input");
    cuda::convert(stream_, copy.column_range(w.lead, w.k), x);
    return copy;
  }

  // By cuBLASLt, rows of w after rows of w.
  void multiply_unpacked(const Tensor& y, Tensor x, const Weight& w, const float* bias) {
    const int64_t cols = round_up(w.k, kAlignment / 2);
    if (!aligned(x)) x = converted(x, x.dtype, cols);
    const int64_t at_once = quantised_rows_at_once(w.n, w.k);
    Tensor rows(unpacked_.get(0), x.dtype, at_once, cols);
    for (int64_t first = 0; first < w.n; first += at_once) {
      rows.rows = std::min(at_once, w.n - first);
      cuda::dequantise(stream_, rows, w, first);
      check_launch("dequantise");
      multiply(y.column_range(first, rows.rows), x, rows.data, cols,
               bias == nullptr ? nullptr : bias + first);
    }
  }

  // w: y.cols rows of x's type, w_stride elements apart.
  void multiply(Tensor y, const Tensor& x, const void* w, int64_t w_stride, const float* bias) {
    Tensor out = y;
    if (!aligned(y)) {
      const int64_t cols = round_up(y.cols, kAlignment / element_size(DType::kF32));
      const auto bytes = static_cast<size_t>(y.rows * cols * element_size(DType::kF32));
      out = Tensor(output_.get(bytes), DType::kF32, y.rows, cols);
      out.cols = y.cols;
    }
    const bool fused = bias != nullptr && reinterpret_cast<uintptr_t>(bias) % kAlignment == 0;
    cublas_.multiply(stream_, {out, x, w, y.cols, w_stride, fused ? bias : nullptr});
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
  const bool record_steps_;
  Team team_;
  cudaStream_t stream_;
  cuda::Cublas cublas_;
  cuda::Pinned pinned_;
  cuda::WeightStaging weights_;
  cuda::Scratch input_, output_, partial_, draws_, unpacked_;
  Buffer counters_;  // of quantised products: zeros between them
  cuda::Recordings recordings_;
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
  return std::make_unique<CudaBackend>(device, options);
}

}  // namespace trireme

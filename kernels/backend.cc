// SPDX-License-Identifier: Apache-2.0
#include "kernels/backend.h"

#include <array>

#include "kernels/base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_device.h"

namespace trireme {

// A device whose operations need none.
void Backend::reserve_workspace(int32_t, int32_t) {}

void Backend::rope_store_kv(Tensor qkv, const KvLayer& kv, const int32_t* positions,
                            const RopeTable& table, const int32_t* slots) {
  const int64_t kv_cols = int64_t{kv.num_heads} * kv.head_dim;
  const int64_t rotated = qkv.cols - kv_cols;
  rope(qkv.column_range(0, rotated), static_cast<int32_t>(rotated / kv.head_dim), positions, table);
  store_kv(kv, qkv.column_range(rotated - kv_cols, kv_cols), qkv.column_range(rotated, kv_cols),
           slots);
}

void Backend::matmul_gated(Tensor y, Tensor gate_up, Tensor x, const Weight& w, const float* bias,
                           Activation activation) {
  matmul(gate_up, x, w, bias);
  gated_activation(y, gate_up, activation);
}

Weight Backend::make_quantised(DType dtype, int64_t, int64_t, int64_t, int64_t) {
  throw Error(Code::kFailedPrecondition,
              std::string("cannot keep weights of ") + dtype_name(dtype) + " on " + name() +
                  ": it has no arithmetic for them; use --dtype bf16, or run this rank on a GPU");
}

namespace {

struct BackendEntry {
  const char* device;
  std::unique_ptr<Backend> (*make)(const BackendOptions& options);
};

// The list of backends. A new one is a folder beside cpu/ and a line here.
constexpr std::array kBackends = {
    BackendEntry{"cpu", make_cpu_backend},
    BackendEntry{"cuda", make_cuda_backend},
};

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  std::string known;
  for (const BackendEntry& entry : kBackends) {
    if (options.device == entry.device) return entry.make(options);
    known += known.empty() ? "" : ", ";
    known += entry.device;
  }
  throw Error(Code::kInvalidArgument, "cannot make a backend: unknown device '" + options.device +
                                          "', this program knows: " + known);
}

}  // namespace trireme

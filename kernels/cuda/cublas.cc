// SPDX-License-Identifier: Apache-2.0
// cuBLASLt thinks in columns: its column-major y is [N, T], so it computes yᵀ = w · xᵀ with w
// transposed. Its epilogue adds the bias along N, which are its rows.
#include "kernels/cuda/cublas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <bit>
#include <map>
#include <string>
#include <tuple>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/sizes.h"

namespace trireme::cuda {
namespace {

// The functions of the library that are used, by their own names.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtGetStatusString) status_string;
};

template <typename Function>
void find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function != nullptr) return;
  throw Error(Code::kFailedPrecondition, std::string("cannot use cuBLASLt: it has no ") + name +
                                             "; install the CUDA libraries that this program was "
                                             "built with");
}

Library open_library() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  // Stays open: its code may run until the process ends.
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw Error(Code::kFailedPrecondition,
                "cannot use the GPU: " + name + " was not found (" +
                    (reason != nullptr ? reason : "no reason given") +
                    "); install the CUDA libraries, or name their folder in LD_LIBRARY_PATH");
  }
  Library library{};
  find(handle, "cublasLtCreate", library.create);
  find(handle, "cublasLtDestroy", library.destroy);
  find(handle, "cublasLtMatmul", library.matmul);
  find(handle, "cublasLtMatmulDescCreate", library.desc_create);
  find(handle, "cublasLtMatmulDescDestroy", library.desc_destroy);
  find(handle, "cublasLtMatmulDescSetAttribute", library.desc_set);
  find(handle, "cublasLtMatrixLayoutCreate", library.layout_create);
  find(handle, "cublasLtMatrixLayoutDestroy", library.layout_destroy);
  find(handle, "cublasLtMatmulPreferenceCreate", library.preference_create);
  find(handle, "cublasLtMatmulPreferenceDestroy", library.preference_destroy);
  find(handle, "cublasLtMatmulPreferenceSetAttribute", library.preference_set);
  find(handle, "cublasLtMatmulAlgoGetHeuristic", library.heuristic);
  find(handle, "cublasLtGetStatusString", library.status_string);
  return library;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

void check(cublasStatus_t status, const char* action) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(Code::kInternal, std::string("cannot ") + action +
                                   " with cuBLASLt: " + library().status_string(status));
}

// A handle of the library, and the function that ends it.
template <typename Handle>
using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, cublasStatus_t (*)(Handle)>;

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32: return CUDA_R_32F;
    case DType::kBF16: return CUDA_R_16BF;
    case DType::kF16: return CUDA_R_16F;
    default: break;
  }
  throw Error(Code::kInternal, std::string("cannot multiply ") + dtype_name(dtype));
}

Owner<cublasLtMatrixLayout_t> layout(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
  cublasLtMatrixLayout_t made = nullptr;
  check(library().layout_create(&made, data_type(dtype), static_cast<uint64_t>(rows),
                                static_cast<uint64_t>(cols), stride),
        "describe a matrix");
  return {made, library().layout_destroy};
}

struct Plan {
  Owner<cublasLtMatmulDesc_t> operation;
  cublasLtMatmulAlgo_t algorithm{};
};

Owner<cublasLtMatmulDesc_t> describe(bool biased) {
  cublasLtMatmulDesc_t made = nullptr;
  check(library().desc_create(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describe a product");
  Owner<cublasLtMatmulDesc_t> operation(made, library().desc_destroy);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check(library().desc_set(made, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
        "describe a product");
  if (biased) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    check(library().desc_set(made, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)),
          "describe a product");
  }
  return operation;
}

// What an algorithm is chosen for: type, bias, N, K, T of the bucket, strides of x and y.
using Key = std::tuple<DType, bool, int64_t, int64_t, int64_t, int64_t, int64_t>;

}  // namespace

struct Cublas::State {
  explicit State(bool deterministic_in) : deterministic(deterministic_in) {
    check(library().create(&handle), "start");
    cuda_check(cudaMalloc(&workspace, kCublasWorkspaceBytes), "allocate cuBLASLt's workspace");
  }
  ~State() {
    plans.clear();
    cudaFree(workspace);
    library().destroy(handle);
  }

  // T of the shape that stands for all of its bucket.
  int64_t bucket(int64_t rows) const {
    constexpr int64_t kOfAll = 128;
    if (deterministic) return kOfAll;
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
  }

  const Plan& plan(const Product& product) {
    const DType dtype = product.x.dtype;
    const int64_t rows = bucket(product.x.rows);
    const Key key{dtype, product.bias != nullptr, product.n,       product.x.cols,
                  rows,  product.x.stride,        product.y.stride};
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
    return plans.emplace(key, choose(product, rows)).first->second;
  }

  Plan choose(const Product& product, int64_t rows) {
    const DType dtype = product.x.dtype;
    const int64_t k = product.x.cols;
    Plan plan{describe(product.bias != nullptr)};
    const auto w = layout(dtype, k, product.n, product.w_stride);
    const auto x = layout(dtype, k, rows, product.x.stride);
    const auto y = layout(DType::kF32, product.n, rows, product.y.stride);
    cublasLtMatmulPreference_t made = nullptr;
    check(library().preference_create(&made), "choose an algorithm");
    const Owner<cublasLtMatmulPreference_t> preference(made, library().preference_destroy);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, auto value) {
      check(library().preference_set(made, name, &value, sizeof(value)), "choose an algorithm");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kCublasWorkspaceBytes});
    // It would suppose 256 bytes, which a part of a larger tensor does not have.
    for (const auto operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      prefer(operand, uint32_t{16});
    }
    if (deterministic) {
      prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    }
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    check(library().heuristic(handle, plan.operation.get(), w.get(), x.get(), y.get(), y.get(),
                              made, 1, &result, &count),
          "choose an algorithm");
    if (count == 0) {
      throw Error(Code::kInternal, "cannot multiply [" + std::to_string(rows) + ", " +
                                       std::to_string(k) + "] with [" + std::to_string(product.n) +
                                       ", " + std::to_string(k) + "] of " + dtype_name(dtype) +
                                       ": cuBLASLt has no algorithm for it");
    }
    plan.algorithm = result.algo;
    return plan;
  }

  const bool deterministic;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::map<Key, Plan> plans;
};

Cublas::Cublas(bool deterministic) : state_(std::make_unique<State>(deterministic)) {}

Cublas::~Cublas() = default;

void Cublas::multiply(cudaStream_t stream, const Product& product) {
  const Plan& plan = state_->plan(product);
  if (product.bias != nullptr) {
    check(library().desc_set(plan.operation.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias,
                             sizeof(product.bias)),
          "describe a product");
  }
  const DType dtype = product.x.dtype;
  const auto w = layout(dtype, product.x.cols, product.n, product.w_stride);
  const auto x = layout(dtype, product.x.cols, product.x.rows, product.x.stride);
  const auto y = layout(DType::kF32, product.n, product.x.rows, product.y.stride);
  const float one = 1;
  const float zero = 0;
  check(
      library().matmul(state_->handle, plan.operation.get(), &one, product.w, w.get(),
                       product.x.data, x.get(), &zero, product.y.data, y.get(), product.y.data,
                       y.get(), &plan.algorithm, state_->workspace, kCublasWorkspaceBytes, stream),
      "multiply");
}

}  // namespace trireme::cuda

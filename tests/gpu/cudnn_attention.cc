// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/cudnn_attention.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <unordered_map>
#include <utility>

#include "kernels/base/error.h"

// The frontend's headers call cuDNN through it.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace trireme {
namespace {

namespace fe = cudnn_frontend;

enum Name : int64_t { kQ = 1, kK, kV, kY, kKeyTable, kValueTable, kQueries, kContext };

constexpr size_t kFirstWithPages = 90500;

void check(const fe::error_object& error, const char* action) {
  if (error.is_good()) return;
  throw Error(Code::kUnimplemented, std::string("cannot ") + action + ": " + error.err_msg);
}

void check(cudnnStatus_t status, const char* action) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  throw Error(Code::kInternal,
              std::string("cannot ") + action + ": " + fe::detail::get_error_string(status));
}

std::string version_of(size_t number) {
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
         std::to_string(number % 100);
}

std::shared_ptr<fe::graph::Tensor_attributes> tensor(fe::graph::Graph& graph, Name name,
                                                     fe::DataType_t type, std::vector<int64_t> dim,
                                                     std::vector<int64_t> stride) {
  return graph.tensor(fe::graph::Tensor_attributes()
                          .set_uid(name)
                          .set_name(std::to_string(name))
                          .set_data_type(type)
                          .set_dim(std::move(dim))
                          .set_stride(std::move(stride)));
}

// A tensor [S, heads, rows, D] whose heads lie in blocks of `rows`.
struct HeadsFirst {
  std::vector<int64_t> dim, stride;
  HeadsFirst(int64_t count, int64_t heads, int64_t rows, int64_t d)
      : dim{count, heads, rows, d}, stride{heads * rows * d, rows * d, d, 1} {}
};

class FusedAttention final : public Cudnn::Attention {
 public:
  FusedAttention(cudnnHandle_t handle, const AttentionShape& shape, CacheLayout layout,
                 fe::AttentionImplementation_t implementation)
      : handle_(handle), paged_(layout == CacheLayout::kPaged), implementation_(implementation) {
    graph_.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    describe(shape);
  }

  void choose_plan(Backend& backend) {
    const char* const action = "plan cuDNN's attention";
    check(graph_.validate(), action);
    check(graph_.build_operation_graph(handle_), action);
    check(graph_.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}), action);
    check(graph_.check_support(), action);
    check(graph_.build_plans(), action);
    int64_t bytes = 0;
    check(graph_.get_workspace_size(bytes), action);
    workspace_ = backend.allocate(static_cast<size_t>(bytes));
    backend.synchronize();
  }

  void run(const AttentionOperands& operands) override {
    const auto of = [](const void* data) { return const_cast<void*>(data); };
    std::unordered_map<int64_t, void*> arguments = {
        {kQ, of(operands.q)}, {kK, of(operands.k)}, {kV, of(operands.v)}, {kY, operands.y}};
    if (paged_) {
      arguments[kKeyTable] = arguments[kValueTable] = of(operands.block_tables);
      arguments[kQueries] = of(operands.queries);
      arguments[kContext] = of(operands.context);
    }
    check(graph_.execute(handle_, arguments, workspace_.data()), "run cuDNN's attention");
  }

  std::string plan() const override {
    std::string name;
    return graph_.get_plan_name(name).is_good() ? name : "unnamed";
  }

 private:
  void describe(const AttentionShape& shape) {
    const int64_t d = shape.head_dim;
    const int64_t sequences = shape.sequences;
    const int64_t rows = paged_ ? shape.block_size : shape.context;
    const int64_t owners = paged_ ? sequences * shape.blocks_of_sequence() : sequences;
    // Queries and results as the backend has them: token after token.
    const std::vector<int64_t> dim = {sequences, shape.heads, shape.queries, d};
    const std::vector<int64_t> stride = {shape.queries * shape.cols(), d, shape.cols(), 1};
    const HeadsFirst cache(owners, shape.kv_heads, rows, d);
    constexpr auto kType = fe::DataType_t::BFLOAT16;
    const auto q = tensor(graph_, kQ, kType, dim, stride);
    const auto k = tensor(graph_, kK, kType, cache.dim, cache.stride);
    const auto v = tensor(graph_, kV, kType, cache.dim, cache.stride);
    auto options = fe::graph::SDPA_attributes()
                       .set_name("attention")
                       .set_generate_stats(false)
                       .set_implementation(implementation_)
                       .set_attn_scale(shape.scale());
    if (shape.queries > 1) {  // a single one sees all
      const bool square = shape.queries == shape.context;
      options
          .set_diagonal_alignment(square ? fe::DiagonalAlignment_t::TOP_LEFT
                                         : fe::DiagonalAlignment_t::BOTTOM_RIGHT)
          .set_diagonal_band_right_bound(0);
    }
    if (paged_) set_pages(options, shape);
    const auto y = graph_.sdpa(q, k, v, options)[0];
    y->set_output(true).set_uid(kY).set_data_type(kType).set_dim(dim).set_stride(stride);
  }

  void set_pages(fe::graph::SDPA_attributes& options, const AttentionShape& shape) {
    constexpr auto kType = fe::DataType_t::INT32;
    const int64_t sequences = shape.sequences;
    const int64_t blocks = shape.blocks_of_sequence();
    const auto table = [&](Name name) {
      return tensor(graph_, name, kType, {sequences, 1, blocks, 1}, {blocks, blocks, 1, 1});
    };
    const auto lengths = [&](Name name) {
      return tensor(graph_, name, kType, {sequences, 1, 1, 1}, {1, 1, 1, 1});
    };
    options.set_paged_attention_k_table(table(kKeyTable))
        .set_paged_attention_v_table(table(kValueTable))
        .set_paged_attention_max_seq_len_kv(shape.context)
        .set_padding_mask(true)
        .set_seq_len_q(lengths(kQueries))
        .set_seq_len_kv(lengths(kContext));
  }

  cudnnHandle_t handle_;
  const bool paged_;
  const fe::AttentionImplementation_t implementation_;
  fe::graph::Graph graph_;
  Buffer workspace_;
};

}  // namespace

struct Cudnn::State {
  cudnnHandle_t handle = nullptr;
  std::string description;
};

Cudnn::Cudnn(cudaStream_t stream) : state_(std::make_unique<State>()) {
  void* const library = dlopen("libcudnn.so.9", RTLD_NOW);
  void* const entry = library == nullptr ? nullptr : dlsym(library, "cudnnGetVersion");
  if (entry == nullptr) {
    const char* const reason = dlerror();
    throw Error(Code::kFailedPrecondition, std::string("cannot open cuDNN: ") +
                                               (reason == nullptr ? "no reason is told" : reason));
  }
  fe::cudnn_dlhandle = library;
  Dl_info place{};
  const bool known = dladdr(entry, &place) != 0 && place.dli_fname != nullptr;
  const size_t number = fe::detail::get_backend_version();
  state_->description = "cuDNN " + version_of(number) + " (" +
                        (known ? place.dli_fname : "no file is told") + "), frontend " +
                        version_of(CUDNN_FRONTEND_VERSION);
  if (number < kFirstWithPages) {
    throw Error(Code::kFailedPrecondition,
                "cannot measure " + state_->description + ": pages need 9.5.0");
  }
  check(fe::detail::create_handle(&state_->handle), "start cuDNN");
  check(fe::detail::set_stream(state_->handle, stream), "give cuDNN a stream");
}

Cudnn::~Cudnn() {
  if (state_->handle != nullptr) fe::detail::destroy_handle(state_->handle);
}

std::string Cudnn::description() const { return state_->description; }

std::unique_ptr<Cudnn::Attention> Cudnn::attention(Backend& backend, const AttentionShape& shape,
                                                   CacheLayout layout) {
  using enum fe::AttentionImplementation_t;
  const auto make = [&](fe::AttentionImplementation_t implementation) {
    auto made = std::make_unique<FusedAttention>(state_->handle, shape, layout, implementation);
    made->choose_plan(backend);
    return made;
  };
  // What the frontend chooses by itself has engines for Blackwell alone (cuDNN 9.19, one query).
  try {
    return make(COMPOSITE);
  } catch (const Error& error) {
    try {
      return make(UNIFIED);
    } catch (const std::exception&) {
      throw error;
    }
  }
}

}  // namespace trireme

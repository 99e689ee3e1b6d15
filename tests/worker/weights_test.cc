// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "tests/worker/model_files.h"
#include "topology/shard.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

// Keeps weights row by row, as they were given.
class PlainBackend final : public Backend {
 public:
  bool in_host_memory() const override { return true; }
  std::string name() const override { return "plain"; }
  Buffer allocate(size_t bytes) override {
    return Buffer(std::calloc(bytes + 1, 1), bytes, [](void* data, size_t) { std::free(data); });
  }
  void upload(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void synchronize() override {}
  Team& team() override { return two; }
  Weight make_weight(DType dtype, int64_t n, int64_t k) override {
    return {allocate(n * k * element_size(dtype)), dtype, n, k};
  }
  void pack_rows(Weight& w, int64_t row, Tensor rows) override {
    ASSERT_TRUE(rows.dtype == w.dtype && rows.cols == w.k && row >= 0 && row + rows.rows <= w.n);
    ++packs;
    const Tensor whole(w.storage.data(), w.dtype, w.n, w.k);
    for (int64_t i = 0; i < rows.rows; ++i) {
      std::memcpy(whole.at(row + i), rows.at(i), rows.cols * element_size(w.dtype));
    }
  }
  void embed(Tensor, const int32_t*, const Weight&, int32_t) override { std::abort(); }
  void rms_norm(Tensor, Tensor, const float*, float) override { std::abort(); }
  void add_rms_norm(Tensor, Tensor, Tensor, const float*, float) override { std::abort(); }
  void rms_norm_heads(Tensor, int32_t, const float*, float) override { std::abort(); }
  void matmul(Tensor, Tensor, const Weight&, const float*) override { std::abort(); }
  void rope(Tensor, int32_t, const int32_t*, const RopeTable&) override { std::abort(); }
  void store_kv(const KvLayer&, Tensor, Tensor, const int32_t*) override { std::abort(); }
  void attention(Tensor, Tensor, const KvLayer&, const BatchView&, const HeadMap&,
                 const AttentionSpec&) override {
    std::abort();
  }
  void add(Tensor, Tensor) override { std::abort(); }
  void scale(Tensor, float) override { std::abort(); }
  void soft_cap(Tensor, float) override { std::abort(); }
  void gated_activation(Tensor, Tensor, Activation) override { std::abort(); }
  void gather_rows(Tensor, Tensor, const int32_t*) override { std::abort(); }
  int packs = 0;
  Team two{2};
};

// Row-major values of a loaded fp32 weight or vector, for comparing.
struct Matrix {
  int64_t cols = 0;
  std::vector<float> values;

  int64_t rows() const { return cols == 0 ? 0 : static_cast<int64_t>(values.size()) / cols; }
  bool operator==(const Matrix&) const = default;

  void append(const Matrix& other) {
    cols = other.cols;
    values.insert(values.end(), other.values.begin(), other.values.end());
  }
  Matrix rows_in(int64_t begin, int64_t end) const {
    return {cols, {values.begin() + begin * cols, values.begin() + end * cols}};
  }
  Matrix cols_in(int64_t begin, int64_t end) const {
    Matrix slice{end - begin, {}};
    for (int64_t row = 0; row < rows(); ++row) {
      const auto first = values.begin() + row * cols;
      slice.values.insert(slice.values.end(), first + begin, first + end);
    }
    return slice;
  }
};

Matrix of(const Weight& weight) {
  const auto* data = static_cast<const float*>(weight.storage.data());
  if (data == nullptr) return {};
  return {weight.k, {data, data + weight.n * weight.k}};
}

Matrix of(const Buffer& buffer) {
  const auto* data = static_cast<const float*>(buffer.data());
  if (data == nullptr) return {};
  return {1, {data, data + buffer.bytes() / sizeof(float)}};
}

// A tensor as it stands in the checkpoint; a vector becomes a column.
Matrix of(Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo* tensor = checkpoint.find(name);
  if (tensor == nullptr) {
    ADD_FAILURE() << name;
    return {};
  }
  Matrix matrix{tensor->shape.size() == 2 ? tensor->cols() : 1, {}};
  matrix.values.resize(tensor->rows() * tensor->cols());
  checkpoint.read(*tensor, 0, 0,
                  Tensor(matrix.values.data(), DType::kF32, tensor->rows(), tensor->cols()));
  return matrix;
}

StageSpec stage_of(int32_t begin, int32_t end, int32_t num_layers) {
  StageSpec stage;
  stage.mutable_layers()->set_begin(begin);
  stage.mutable_layers()->set_end(end);
  stage.set_has_embedding(begin == 0);
  stage.set_has_head(end == num_layers);
  return stage;
}

Placement placement_of(DType dtype) {
  Placement placement;
  placement.set_dtype(dtype_name(dtype));
  return placement;
}

struct Loaded {
  Weights weights;
  uint64_t bytes_read = 0;
};

Loaded load(const std::string& path, const ModelSpec& model, const StageSpec& stage,
            const ShardSpec& shard, DType dtype = DType::kF32) {
  const auto checkpoint = Checkpoint::open(path);
  PlainBackend backend;
  Loaded loaded;
  loaded.weights = load_weights(model, stage, shard, placement_of(dtype), *checkpoint, backend, {});
  loaded.bytes_read = checkpoint->bytes_read();
  EXPECT_EQ(loaded.bytes_read, checkpoint_bytes(model, stage, shard, *checkpoint));
  return loaded;
}

Weights load_whole(const std::string& path) {
  const ModelSpec model = read_model_spec(path);
  return load(path, model, stage_of(0, model.num_layers(), model.num_layers()),
              make_shard(model, 0, 1))
      .weights;
}

void expect_same(const Weights& a, const Weights& b) {
  EXPECT_EQ(of(a.embedding), of(b.embedding));
  EXPECT_EQ(of(a.final_norm), of(b.final_norm));
  EXPECT_EQ(of(a.head), of(b.head));
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(of(a.layers[i].attention_norm), of(b.layers[i].attention_norm)) << i;
    EXPECT_EQ(of(a.layers[i].qkv), of(b.layers[i].qkv)) << i;
    EXPECT_EQ(of(a.layers[i].qkv_bias), of(b.layers[i].qkv_bias)) << i;
    EXPECT_EQ(of(a.layers[i].attention_out), of(b.layers[i].attention_out)) << i;
    EXPECT_EQ(of(a.layers[i].mlp_norm), of(b.layers[i].mlp_norm)) << i;
    EXPECT_EQ(of(a.layers[i].gate_up), of(b.layers[i].gate_up)) << i;
    EXPECT_EQ(of(a.layers[i].down), of(b.layers[i].down)) << i;
  }
}

// ---- a whole model is what its tensors say ----

TEST(LoadWeights, JoinsSeparateTensors) {
  const std::string path = test_data("tiny-qwen2");
  const auto checkpoint = Checkpoint::open(path);
  const Weights weights = load_whole(path);
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    Matrix qkv, bias, gate_up;
    for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
      qkv.append(of(*checkpoint, prefix + "self_attn." + part + ".weight"));
      bias.append(of(*checkpoint, prefix + "self_attn." + part + ".bias"));
    }
    gate_up.append(of(*checkpoint, prefix + "mlp.gate_proj.weight"));
    gate_up.append(of(*checkpoint, prefix + "mlp.up_proj.weight"));
    const LayerWeights& loaded = weights.layers[layer];
    EXPECT_EQ(of(loaded.qkv), qkv);
    EXPECT_EQ(of(loaded.qkv_bias), bias);
    EXPECT_EQ(of(loaded.gate_up), gate_up);
    EXPECT_EQ(of(loaded.attention_out), of(*checkpoint, prefix + "self_attn.o_proj.weight"));
    EXPECT_EQ(of(loaded.down), of(*checkpoint, prefix + "mlp.down_proj.weight"));
    EXPECT_EQ(of(loaded.attention_norm), of(*checkpoint, prefix + "input_layernorm.weight"));
    EXPECT_EQ(of(loaded.mlp_norm), of(*checkpoint, prefix + "post_attention_layernorm.weight"));
  }
  EXPECT_EQ(of(weights.embedding), of(*checkpoint, "model.embed_tokens.weight"));
  EXPECT_EQ(of(weights.final_norm), of(*checkpoint, "model.norm.weight"));
  EXPECT_EQ(weights.head.storage.data(), nullptr);  // tied
}

TEST(LoadWeights, TakesFusedTensorsWhole) {
  const std::string path = test_data("tiny-chatglm3");
  const auto checkpoint = Checkpoint::open(path);
  const Weights weights = load_whole(path);
  const std::string prefix = "transformer.encoder.layers.1.";
  EXPECT_EQ(of(weights.layers[1].qkv),
            of(*checkpoint, prefix + "self_attention.query_key_value.weight"));
  EXPECT_EQ(of(weights.layers[1].qkv_bias),
            of(*checkpoint, prefix + "self_attention.query_key_value.bias"));
  EXPECT_EQ(of(weights.layers[1].gate_up), of(*checkpoint, prefix + "mlp.dense_h_to_4h.weight"));
  EXPECT_EQ(of(weights.head), of(*checkpoint, "transformer.output_layer.weight"));
}

// GGUF holds the same values under other names, Llama's query and key rows in another order.
TEST(LoadWeights, GgufGivesWhatSafetensorsGive) {
  for (const char* name : {"tiny-llama3", "tiny-qwen2", "tiny-chatglm3"}) {
    SCOPED_TRACE(name);
    expect_same(load_whole(test_data(std::string("gguf/") + name + ".gguf")),
                load_whole(test_data(name)));
  }
}

TEST(LoadWeights, RoundsToTheServingType) {
  const std::string path = test_data("tiny-llama3");
  const ModelSpec model = read_model_spec(path);
  const StageSpec stage = stage_of(0, 3, 3);
  const ShardSpec shard = make_shard(model, 0, 1);
  const Matrix exact = of(load(path, model, stage, shard).weights.layers[0].down);
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    const Weights weights = load(path, model, stage, shard, dtype).weights;
    const Weight& down = weights.layers[0].down;
    ASSERT_EQ(down.dtype, dtype);
    const auto* bits = static_cast<const uint16_t*>(down.storage.data());
    for (size_t i = 0; i < exact.values.size(); ++i) {
      ASSERT_EQ(bits[i], dtype == DType::kBF16 ? float_to_bf16(exact.values[i])
                                               : float_to_fp16(exact.values[i]));
    }
    EXPECT_EQ(weights.final_norm.bytes(), 64 * sizeof(float));
  }
}

// ---- shards ----

class Sharded : public testing::TestWithParam<std::tuple<const char*, int32_t>> {};

INSTANTIATE_TEST_SUITE_P(
    All, Sharded,
    testing::Combine(testing::Values("tiny-chatglm3", "tiny-chatglm3-fp16-sharded", "tiny-llama3",
                                     "tiny-qwen2", "tiny-glm", "gguf/tiny-llama3.gguf"),
                     testing::Values(1, 2, 3, 4, 8)),
    [](const auto& row) {
      std::string name = std::get<0>(row.param);
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
      return name + "_tp" + std::to_string(std::get<1>(row.param));
    });

// The rows of a shard in a matrix whose rows are Q | K | V.
Matrix qkv_rows(const Matrix& whole, const ModelSpec& model, const ShardSpec& shard) {
  const int64_t d = model.head_dim();
  const int64_t k_begin = model.num_heads() * d;
  const int64_t v_begin = k_begin + model.num_kv_heads() * d;
  Matrix part = whole.rows_in(shard.heads().begin() * d, shard.heads().end() * d);
  for (int64_t begin : {k_begin, v_begin}) {
    part.append(
        whole.rows_in(begin + shard.kv_heads().begin() * d, begin + shard.kv_heads().end() * d));
  }
  return part;
}

void expect_shard(const LayerWeights& part, const LayerWeights& whole, const ModelSpec& model,
                  const ShardSpec& shard) {
  const int64_t d = model.head_dim();
  const Range& ffn = shard.ffn();
  EXPECT_EQ(of(part.qkv), qkv_rows(of(whole.qkv), model, shard));
  if (model.qkv_bias()) {
    EXPECT_EQ(of(part.qkv_bias), qkv_rows(of(whole.qkv_bias), model, shard));
  }
  EXPECT_EQ(of(part.attention_out),
            of(whole.attention_out).cols_in(shard.heads().begin() * d, shard.heads().end() * d));
  Matrix gate_up = of(whole.gate_up).rows_in(ffn.begin(), ffn.end());
  gate_up.append(
      of(whole.gate_up).rows_in(model.ffn_size() + ffn.begin(), model.ffn_size() + ffn.end()));
  if (ffn.begin() < ffn.end()) {
    EXPECT_EQ(of(part.gate_up), gate_up);
    EXPECT_EQ(of(part.down), of(whole.down).cols_in(ffn.begin(), ffn.end()));
  }
  EXPECT_EQ(of(part.attention_norm), of(whole.attention_norm));
  EXPECT_EQ(of(part.mlp_norm), of(whole.mlp_norm));
}

TEST_P(Sharded, HoldsItsSlicesOfEveryStage) {
  const auto [name, degree] = GetParam();
  const std::string path = test_data(name);
  const ModelSpec model = read_model_spec(path);
  const Weights whole = load_whole(path);
  for (const auto& [begin, end] :
       std::vector<std::pair<int32_t, int32_t>>{{0, 3}, {0, 1}, {1, 3}}) {
    const StageSpec stage = stage_of(begin, end, 3);
    for (int32_t rank = 0; rank < degree; ++rank) {
      SCOPED_TRACE(std::to_string(begin) + " to " + std::to_string(end) + ", rank " +
                   std::to_string(rank));
      const ShardSpec shard = make_shard(model, rank, degree);
      const Weights part = load(path, model, stage, shard).weights;
      const auto vocab = [&](const Weight& weight) {
        return of(weight).rows_in(shard.vocab().begin(), shard.vocab().end());
      };
      const bool table = begin == 0 || (end == 3 && model.tied_embeddings());
      EXPECT_EQ(of(part.embedding), table ? vocab(whole.embedding) : Matrix{});
      const bool head = end == 3 && !model.tied_embeddings();
      EXPECT_EQ(of(part.head), head ? vocab(whole.head) : Matrix{});
      EXPECT_EQ(of(part.final_norm), end == 3 ? of(whole.final_norm) : Matrix{});
      ASSERT_EQ(part.layers.size(), static_cast<size_t>(end - begin));
      for (int32_t layer = begin; layer < end; ++layer) {
        expect_shard(part.layers[layer - begin], whole.layers[layer], model, shard);
      }
    }
  }
}

// Whole rows of column slices, norms, and KV heads that several ranks need are read several times
// by design; nothing else is.
uint64_t replicated_bytes(const ModelSpec& model, int32_t degree, Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  int64_t kv_heads = -model.num_kv_heads();
  uint64_t with_ffn = 0;  // a small FFN has no columns for every rank
  for (int32_t rank = 0; rank < degree; ++rank) {
    const ShardSpec shard = make_shard(model, rank, degree);
    kv_heads += shard.kv_heads().end() - shard.kv_heads().begin();
    with_ffn += shard.ffn().end() > shard.ffn().begin() ? 1 : 0;
  }
  for (const WeightRule& rule : weight_rules(model)) {
    const bool outer = rule.slot == Slot::kFinalNorm;
    const TensorInfo* tensor = checkpoint.find(tensor_name(rule, 0));
    if (tensor == nullptr) continue;  // a tied head
    const uint64_t times = outer ? 1 : model.num_layers();
    const uint64_t readers = rule.slot == Slot::kDown ? with_ffn : degree;
    if (rule.segments[0] == Segment::kWhole) bytes += times * (readers - 1) * tensor->bytes;
    if (rule.slot != Slot::kQkv && rule.slot != Slot::kQkvBias) continue;
    int64_t rows = 0;  // of K or V of one head
    for (Segment segment : rule.segments) {
      if (segment != Segment::kQ) rows += model.head_dim();
    }
    const int64_t all = rule.slot == Slot::kQkv ? tensor->rows() : tensor->cols();
    bytes += times * rows * kv_heads * (tensor->bytes / all);
  }
  return bytes;
}

TEST_P(Sharded, ReadsOnlyWhatItOwns) {
  const auto [name, degree] = GetParam();
  const std::string path = test_data(name);
  const ModelSpec model = read_model_spec(path);
  const auto checkpoint = Checkpoint::open(path);
  uint64_t read = 0;
  for (int32_t rank = 0; rank < degree; ++rank) {
    for (const StageSpec& stage : {stage_of(0, 1, 3), stage_of(1, 3, 3)}) {
      read += load(path, model, stage, make_shard(model, rank, degree)).bytes_read;
    }
  }
  uint64_t ignored = 0;
  for (const char* unused : {"transformer.rotary_pos_emb.inv_freq", "rope_freqs.weight"}) {
    const TensorInfo* tensor = checkpoint->find(unused);
    if (tensor != nullptr) ignored += tensor->bytes;
  }
  uint64_t expected =
      checkpoint->total_bytes() - ignored + replicated_bytes(model, degree, *checkpoint);
  if (model.tied_embeddings()) {  // the last stage has a copy of its own
    expected += checkpoint->find("model.embed_tokens.weight")->bytes;
  }
  EXPECT_EQ(read, expected);
}

// ---- large tensors ----

float value_at(int64_t index) { return static_cast<float>(index % 65521) - 32760; }

std::vector<float> counted(int64_t count, int64_t offset) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = value_at(i + offset);
  return values;
}

// Query rows of 24 MiB, embedding of 36 MiB: several chunks each, un-permuted and as they are.
TEST(LoadWeights, ReadsLargeTensorsInChunks) {
  constexpr int64_t kHidden = 256, kHeadDim = 1024, kHeads = 24, kVocab = 36000;
  const TemporaryFolder folder;
  GgufBuilder b;
  b.string("general.architecture", "llama").integer("llama.block_count", 1);
  b.integer("llama.embedding_length", kHidden).integer("llama.attention.head_count", kHeads);
  b.integer("llama.attention.head_count_kv", 1).integer("llama.attention.key_length", kHeadDim);
  b.integer("llama.attention.value_length", kHeadDim).integer("llama.feed_forward_length", 32);
  b.integer("llama.context_length", 16).number("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  const auto add = [&](const char* name, uint64_t cols, uint64_t rows, int64_t offset) {
    b.values(name, {cols, rows}, counted(cols * rows, offset));
  };
  add("token_embd.weight", kHidden, kVocab, 1);
  add("blk.0.attn_q.weight", kHidden, kHeads * kHeadDim, 2);
  add("blk.0.attn_k.weight", kHidden, kHeadDim, 3);
  add("blk.0.attn_v.weight", kHidden, kHeadDim, 4);
  add("blk.0.attn_output.weight", kHeads * kHeadDim, kHidden, 5);
  add("blk.0.ffn_gate.weight", kHidden, 32, 6);
  add("blk.0.ffn_up.weight", kHidden, 32, 7);
  add("blk.0.ffn_down.weight", 32, kHidden, 8);
  for (const char* name :
       {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"}) {
    b.values(name, {kHidden}, counted(kHidden, 9));
  }
  const std::string path = folder.write("large.gguf", b.build());
  const ModelSpec model = read_model_spec(path);
  const auto checkpoint = Checkpoint::open(path);
  PlainBackend backend;
  std::vector<uint64_t> reports;
  const Weights weights =
      load_weights(model, stage_of(0, 1, 1), make_shard(model, 0, 1), placement_of(DType::kF32),
                   *checkpoint, backend, [&](uint64_t done) { reports.push_back(done); });
  EXPECT_EQ(of(weights.embedding).values, counted(kVocab * kHidden, 1));
  const Matrix qkv = of(weights.layers[0].qkv);
  for (int64_t head : {int64_t{0}, kHeads - 1}) {
    for (int64_t row = 0; row < kHeadDim; ++row) {
      // Row i of the first half is stored at 2i, row i of the second at 2i + 1.
      const int64_t stored = row < kHeadDim / 2 ? 2 * row : 2 * (row - kHeadDim / 2) + 1;
      const int64_t at = (head * kHeadDim + row) * kHidden;
      ASSERT_EQ(qkv.values[at], value_at((head * kHeadDim + stored) * kHidden + 2));
    }
  }
  EXPECT_EQ(backend.packs, 12);  // 3 of the embedding, 2 of Q, 2 of attn_output, 5 others
  EXPECT_GE(reports.size(), 6u);
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
  EXPECT_EQ(reports.back(), checkpoint->total_bytes());
}

// ---- what is refused ----

// A checkpoint with one tensor more than it has.
class WithExtra final : public Checkpoint {
 public:
  WithExtra(const std::string& path, const std::string& name) : inner_(Checkpoint::open(path)) {
    extra_.name = name;
    extra_.type = "F32";
    extra_.shape = {1};
  }
  const TensorInfo* find(const std::string& name) const override {
    return name == extra_.name ? &extra_ : inner_->find(name);
  }
  uint64_t total_bytes() const override { return inner_->total_bytes(); }

  std::vector<const TensorInfo*> tensors() const override { return inner_->tensors(); }
  const std::string& file_of(const TensorInfo& tensor) const override {
    return inner_->file_of(tensor);
  }
  void will_fetch(const TensorInfo&, uint64_t, uint64_t) const override {}

 protected:
  void fetch_bytes(const TensorInfo&, uint64_t, std::span<std::byte>) const override {
    FAIL() << "read before the check";
  }

 private:
  std::unique_ptr<Checkpoint> inner_;
  TensorInfo extra_;
};

TEST(LoadWeights, RefusesTensorsThatDoNotFitTheConfig) {
  const std::string path = test_data("tiny-llama3");
  const auto refused = [&](const char* message, const ModelSpec& model, Checkpoint& checkpoint) {
    PlainBackend backend;
    expect_error(Code::kInvalidArgument, message, [&] {
      load_weights(model, stage_of(0, model.num_layers(), model.num_layers()),
                   make_shard(model, 0, 1), placement_of(DType::kF32), checkpoint, backend, {});
    });
    EXPECT_EQ(checkpoint.bytes_read(), 0u) << message;
  };
  const ModelSpec good = read_model_spec(path);
  const auto checkpoint = Checkpoint::open(path);
  ModelSpec model = good;
  model.set_num_layers(4);
  refused("tensor model.layers.3.input_layernorm.weight is missing; the config needs shape [64]",
          model, *checkpoint);
  model = good;
  model.set_ffn_size(160);
  refused("mlp.gate_proj.weight is of shape [168, 64]; the config needs shape [160, 64]", model,
          *checkpoint);
  model = good;
  model.set_qkv_bias(true);
  refused("self_attn.q_proj.bias is missing; the config needs shape [64]", model, *checkpoint);
  WithExtra bias(path, "model.layers.2.self_attn.o_proj.bias");
  refused("tensor model.layers.2.self_attn.o_proj.bias is there, but llama", good, bias);
  WithExtra query(path, "model.layers.0.self_attn.q_proj.bias");
  refused("tensor model.layers.0.self_attn.q_proj.bias is there", good, query);
}

TEST(LoadWeights, CanBeAbandoned) {
  const std::string path = test_data("tiny-llama3");
  const ModelSpec model = read_model_spec(path);
  const auto checkpoint = Checkpoint::open(path);
  PlainBackend backend;
  expect_error(Code::kCancelled, "enough", [&] {
    load_weights(model, stage_of(0, 3, 3), make_shard(model, 0, 1), placement_of(DType::kF32),
                 *checkpoint, backend, [](uint64_t) { throw Error(Code::kCancelled, "enough"); });
  });
}

}  // namespace
}  // namespace trireme

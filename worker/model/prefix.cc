// SPDX-License-Identifier: Apache-2.0
#include "worker/model/prefix.h"

#include <cstring>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "topology/shard.h"
#include "worker/model/family.h"
#include "worker/model/quant.h"

namespace trireme {
namespace {

// One row of the table is the prefix at one position: for each layer K of every head, then V of
// every head.
struct Encoder {
  const TensorInfo* table = nullptr;  // [P, L · 2 · heads · D]
  // The MLP's two layers, if it has one: [hidden, table's columns] and the transpose.
  const TensorInfo *weight1 = nullptr, *bias1 = nullptr, *weight2 = nullptr, *bias2 = nullptr;
};

int64_t layer_columns(const ModelSpec& model) {
  return int64_t{2} * model.num_kv_heads() * model.head_dim();
}

Encoder find_encoder(const ModelSpec& model, const SlicePlan& plan) {
  const char* module = find_family(model.family()).prefix_module;
  if (module == nullptr) {
    throw Error(Code::kInvalidArgument, "cannot load " + model.name() + ": a learned prefix of " +
                                            model.family() + " is not supported");
  }
  const std::string name = module;
  const int64_t columns = model.num_layers() * layer_columns(model);
  const int64_t hidden = model.prefix_hidden();
  Encoder encoder;
  encoder.table = &plan.tensor(name + ".embedding.weight", {model.prefix_length(), columns});
  if (hidden == 0) return encoder;
  encoder.weight1 = &plan.tensor(name + ".trans.0.weight", {hidden, columns});
  encoder.bias1 = &plan.tensor(name + ".trans.0.bias", {hidden});
  encoder.weight2 = &plan.tensor(name + ".trans.2.weight", {columns, hidden});
  encoder.bias2 = &plan.tensor(name + ".trans.2.bias", {columns});
  return encoder;
}

// The MLP on the backend, in fp32. Its second layer runs for one layer of the model at a time, so
// that the shape of that product, and with it its rounding, is the same at every pipeline split.
class Projection {
 public:
  Projection(const Encoder& encoder, const KeptTensors& kept, Backend& backend)
      : encoder_(encoder), kept_(kept), backend_(backend) {
    const TensorInfo& table = *encoder.table;
    const Buffer input = upload(table, 0, table.rows());
    hidden_ = backend.allocate(values(table.rows(), encoder.weight1->rows()));
    const Tensor hidden(hidden_.data(), DType::kF32, table.rows(), encoder.weight1->rows());
    product(hidden, Tensor(input.data(), DType::kF32, table.rows(), table.cols()), *encoder.weight1,
            *encoder.bias1, 0);
    backend.soft_cap(hidden, 1);  // tanh
  }

  // Columns [begin, begin + out.cols) of every position, to the host.
  void columns(int64_t begin, Tensor out) {
    const Buffer result = backend_.allocate(values(out.rows, out.cols));
    const Tensor y(result.data(), DType::kF32, out.rows, out.cols);
    product(y, Tensor(hidden_.data(), DType::kF32, out.rows, encoder_.weight2->cols()),
            *encoder_.weight2, *encoder_.bias2, begin);
    for (int64_t row = 0; row < out.rows; ++row) {
      backend_.download(out.at(row), y.at(row), values(1, out.cols));
    }
    backend_.synchronize();
  }

 private:
  static size_t values(int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * cols) * sizeof(float);
  }

  std::vector<float> read(const TensorInfo& tensor, int64_t begin, int64_t count) {
    const bool vector = tensor.shape.size() == 1;
    std::vector<float> host(static_cast<size_t>(vector ? count : count * tensor.cols()));
    const Tensor out = vector ? Tensor(host.data(), DType::kF32, 1, count)
                              : Tensor(host.data(), DType::kF32, count, tensor.cols());
    kept_.read(tensor, vector ? 0 : begin, vector ? begin : 0, out);
    return host;
  }

  // Values of a vector, or rows of a matrix.
  Buffer upload(const TensorInfo& tensor, int64_t begin, int64_t count) {
    const std::vector<float> host = read(tensor, begin, count);
    Buffer buffer = backend_.allocate(host.size() * sizeof(float));
    backend_.upload(buffer.data(), host.data(), host.size() * sizeof(float));
    backend_.synchronize();  // `host` ends here
    return buffer;
  }

  // y = x · rows [begin, begin + y.cols) of weight, transposed, + bias
  void product(Tensor y, Tensor x, const TensorInfo& weight, const TensorInfo& bias,
               int64_t begin) {
    std::vector<float> rows = read(weight, begin, y.cols);
    Weight packed = backend_.make_weight(DType::kF32, y.cols, x.cols);
    backend_.pack_rows(packed, 0, Tensor(rows.data(), DType::kF32, y.cols, x.cols));
    const Buffer added = upload(bias, begin, y.cols);
    backend_.matmul(y, x, packed, static_cast<const float*>(added.data()));
    backend_.synchronize();  // the weight ends here
  }

  const Encoder encoder_;
  const KeptTensors& kept_;
  Backend& backend_;
  Buffer hidden_;  // [P, hidden]
};

// [P, layers of the stage · 2 · heads · D] on the host.
std::vector<float> encode(const ModelSpec& model, const StageSpec& stage, const Encoder& encoder,
                          const KeptTensors& kept, Backend& backend) {
  const int64_t width = layer_columns(model);
  const int64_t begin = stage.layers().begin() * width;
  const int64_t columns = length(stage.layers()) * width;
  std::vector<float> values(static_cast<size_t>(model.prefix_length() * columns));
  const Tensor whole(values.data(), DType::kF32, model.prefix_length(), columns);
  if (columns == 0) return values;
  if (encoder.weight1 == nullptr) {
    kept.read(*encoder.table, 0, begin, whole);
    return values;
  }
  Projection projection(encoder, kept, backend);
  for (int64_t at = 0; at < columns; at += width) {
    projection.columns(begin + at, whole.column_range(at, width));
  }
  return values;
}

// The shard's heads of one layer, [2, K, P, D] of dtype; layer: [P, 2 · heads · D].
Buffer cut(const ModelSpec& model, const ShardSpec& shard, DType dtype, Tensor layer,
           Backend& backend) {
  const int64_t d = model.head_dim();
  const int64_t heads = length(shard.kv_heads());
  const StoredType& fp32 = *find_stored_type("F32");
  // As one block of P positions.
  std::vector<std::byte> host(static_cast<size_t>(kv_layer_bytes(dtype, 1, heads, layer.rows, d)));
  std::byte* target = host.data();
  for (int64_t part = 0; part < 2; ++part) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t col = (part * model.num_kv_heads() + shard.kv_heads().begin() + head) * d;
      for (int64_t row = 0; row < layer.rows; ++row) {
        convert_row(fp32, static_cast<const std::byte*>(layer.at(row, col)), 0,
                    Tensor(target, dtype, 1, d));
        target += d * element_size(dtype);
      }
    }
  }
  Buffer buffer = backend.allocate(host.size());
  backend.upload(buffer.data(), host.data(), host.size());
  backend.synchronize();  // `host` ends here
  return buffer;
}

}  // namespace

std::vector<Slice> prefix_slices(const ModelSpec& model, const StageSpec& stage,
                                 const ShardSpec& shard, const Checkpoint& checkpoint) {
  std::vector<Slice> slices;
  if (model.prefix_length() == 0) return slices;
  const Encoder encoder = find_encoder(model, SlicePlan(model, shard, checkpoint));
  const int64_t columns = length(stage.layers()) * layer_columns(model);
  if (columns == 0) return slices;
  const auto whole = [&](const TensorInfo& tensor) {
    slices.push_back({&tensor, 0, tensor.rows(), 0, tensor.cols()});
  };
  whole(*encoder.table);
  if (encoder.weight1 == nullptr) return slices;
  whole(*encoder.weight1);
  whole(*encoder.bias1);
  const int64_t begin = stage.layers().begin() * layer_columns(model);
  slices.push_back({encoder.weight2, begin, columns, 0, encoder.weight2->cols()});
  slices.push_back({encoder.bias2, 0, 1, begin, columns});
  return slices;
}

void KeptTensors::keep(const Slice& slice, Units units, StoredRows stored) {
  Part& part = parts_[slice.tensor];
  part.units = units_of(slice);
  const uint64_t unit = slice.tensor->unit_bytes();
  part.bytes.resize(static_cast<uint64_t>(part.units.count) * unit);
  std::byte* target =
      part.bytes.data() + static_cast<uint64_t>(units.begin - part.units.begin) * unit;
  // A vector's values follow each other, rows of a matrix have a stride.
  const bool matrix = slice.tensor->shape.size() == 2;
  const int64_t rows = matrix ? units.count : 1;
  const uint64_t row_bytes = matrix ? unit : static_cast<uint64_t>(units.count) * unit;
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(target + static_cast<uint64_t>(i) * row_bytes, stored.data + i * stored.stride,
                row_bytes);
  }
}

void KeptTensors::read(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out) const {
  const Part& part = parts_.at(&tensor);
  const auto unit = static_cast<int64_t>(tensor.unit_bytes());
  if (tensor.shape.size() == 2) {
    CHECK(row >= part.units.begin && row + out.rows <= part.units.end(), tensor.name);
    checkpoint_.convert(tensor, row, {part.bytes.data() + (row - part.units.begin) * unit, unit, 0},
                        col, out);
    return;
  }
  const bool values = tensor.units() > 1;
  CHECK(!values || (col >= part.units.begin && col + out.cols <= part.units.end()), tensor.name);
  checkpoint_.convert(tensor, 0, {part.bytes.data(), 0, values ? part.units.begin : 0}, col, out);
}

std::vector<Buffer> load_prefixes(const ModelSpec& model, const StageSpec& stage,
                                  const ShardSpec& shard, DType dtype, const Checkpoint& checkpoint,
                                  const KeptTensors& kept, Backend& backend) {
  std::vector<Buffer> prefixes;
  if (model.prefix_length() == 0) return prefixes;
  const Encoder encoder = find_encoder(model, SlicePlan(model, shard, checkpoint));
  std::vector<float> values = encode(model, stage, encoder, kept, backend);
  const int64_t width = layer_columns(model);
  const Tensor whole(values.data(), DType::kF32, model.prefix_length(),
                     length(stage.layers()) * width);
  for (int64_t at = 0; at < whole.cols; at += width) {
    prefixes.push_back(cut(model, shard, dtype, whole.column_range(at, width), backend));
  }
  return prefixes;
}

}  // namespace trireme

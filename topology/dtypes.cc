// SPDX-License-Identifier: Apache-2.0
// The types of a placement's matrices.
#include <algorithm>
#include <set>

#include "kernels/base/error.h"
#include "topology/shard.h"
#include "topology/worker_names.h"

namespace trireme {
namespace {

const std::string& of_layer(const LayerDtypes& layer, Matrix matrix) {
  switch (matrix) {
    case Matrix::kQkv: return layer.qkv();
    case Matrix::kAttentionOut: return layer.attention_out();
    case Matrix::kGateUp: return layer.gate_up();
    default: return layer.down();
  }
}

const std::string& name_of(const Placement& placement, Matrix matrix, int32_t layer) {
  if (!placement.has_weight_dtypes()) return placement.dtype();
  const WeightDtypes& types = placement.weight_dtypes();
  if (matrix == Matrix::kEmbedding) return types.embedding();
  if (matrix == Matrix::kHead) return types.head();
  return of_layer(types.layers(layer), matrix);
}

constexpr Matrix kOfLayer[] = {Matrix::kQkv, Matrix::kAttentionOut, Matrix::kGateUp, Matrix::kDown};

// The name of a type that only GPUs have, or "".
std::string quantised_type(const WeightDtypes& types) {
  const auto quantised = [](const std::string& name) {
    return is_quantised(parse_dtype(name).value_or(DType::kF32));
  };
  if (quantised(types.head())) return types.head();
  for (const LayerDtypes& layer : types.layers()) {
    for (const Matrix matrix : kOfLayer) {
      if (quantised(of_layer(layer, matrix))) return of_layer(layer, matrix);
    }
  }
  return "";
}

void refuse_cpu(const RankInfo& rank, const std::string& type) {
  if (type.empty() || rank.device().kind() == DEVICE_KIND_CUDA) return;
  throw Error(Code::kFailedPrecondition,
              "cannot use weights of " + type + ": rank " + std::to_string(rank.rank()) + " on " +
                  rank.host() + " is a CPU, and only GPUs compute with them; start the job on " +
                  "GPUs alone, or use --dtype bf16");
}

}  // namespace

DType weight_dtype(const Placement& placement, Matrix matrix, int32_t layer) {
  return parse_dtype(name_of(placement, matrix, layer)).value();
}

DType head_dtype(const ModelSpec& model, const Placement& placement) {
  return weight_dtype(placement, model.tied_embeddings() ? Matrix::kEmbedding : Matrix::kHead);
}

DType cache_dtype(const Placement& placement) {
  return activation_dtype(parse_dtype(placement.dtype()).value());
}

DType widest_input(const Placement& placement, const StageSpec& stage,
                   std::initializer_list<Matrix> matrices) {
  if (stage.layers().begin() == stage.layers().end()) return cache_dtype(placement);
  DType widest = DType::kBF16;
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    for (const Matrix matrix : matrices) {
      const DType type = activation_dtype(weight_dtype(placement, matrix, layer));
      if (element_size(type) > element_size(widest)) widest = type;
    }
  }
  return widest;
}

std::string dtype_summary(const Placement& placement) {
  const WeightDtypes& types = placement.weight_dtypes();
  std::set<std::string> names;
  if (!placement.has_weight_dtypes()) return placement.dtype();
  names.insert({types.embedding(), types.head()});
  for (const LayerDtypes& layer : types.layers()) {
    for (const Matrix matrix : kOfLayer) names.insert(of_layer(layer, matrix));
  }
  std::string summary = names.size() > 1 ? "mixed" : "";
  for (const std::string& name : names) summary += (summary.empty() ? "" : " ") + name;
  return summary;
}

void validate_dtypes(const ModelSpec& model, const Placement& placement) {
  const auto check = [](const std::string& field, const std::string& name, bool may_be_quantised) {
    const auto type = parse_dtype(name);
    if (type && (may_be_quantised || !is_quantised(*type))) return;
    throw Error(Code::kInvalidArgument,
                "cannot use the placement: " + field + " is \"" + name.substr(0, 80) +
                    "\", needed is fp32, bf16" +
                    (may_be_quantised ? ", fp16, int8 or int4" : " or fp16"));
  };
  check("dtype", placement.dtype(), false);
  if (!placement.has_weight_dtypes()) return;
  const WeightDtypes& types = placement.weight_dtypes();
  check("weight_dtypes.embedding", types.embedding(), false);
  check("weight_dtypes.head", types.head(), !model.tied_embeddings());
  if (types.layers_size() != model.num_layers()) {
    throw Error(Code::kInvalidArgument, "cannot use the placement: weight_dtypes has " +
                                            std::to_string(types.layers_size()) +
                                            " layers, the model has " +
                                            std::to_string(model.num_layers()));
  }
  for (int32_t layer = 0; layer < types.layers_size(); ++layer) {
    const std::string where = "weight_dtypes.layers[" + std::to_string(layer) + "].";
    const LayerDtypes& of = types.layers(layer);
    check(where + "qkv", of.qkv(), true);
    check(where + "attention_out", of.attention_out(), true);
    check(where + "gate_up", of.gate_up(), true);
    check(where + "down", of.down(), true);
  }
}

WeightDtypes layers_of(const ModelSpec& model, DType dtype) {
  WeightDtypes types;
  types.set_embedding(dtype_name(DType::kBF16));
  types.set_head(dtype_name(DType::kBF16));
  for (int32_t layer = 0; layer < model.num_layers(); ++layer) {
    LayerDtypes& of = *types.add_layers();
    of.set_qkv(dtype_name(dtype));
    of.set_attention_out(dtype_name(dtype));
    of.set_gate_up(dtype_name(dtype));
    of.set_down(dtype_name(dtype));
  }
  return types;
}

void check_quantised(const Topology& topology, const Placement& placement) {
  const std::string type = quantised_type(placement.weight_dtypes());
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const StageSpec& stage : replica.stages()) {
      for (const ShardSpec& shard : stage.shards()) {
        refuse_cpu(topology.ranks(worker_of(topology, shard.rank())), type);
      }
    }
  }
}

void check_quantised(const Topology& topology, const std::optional<WeightDtypes>& types) {
  if (!types) return;
  for (const RankInfo& rank : topology.ranks()) refuse_cpu(rank, quantised_type(*types));
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "worker/model/dtype_map.h"

#include <map>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/nearest_name.h"
#include "topology/shard.h"
#include "worker/model/config_json.h"
#include "worker/model/family.h"
#include "worker/model/slices.h"

namespace trireme {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxName = 200;

bool outside_layers(Slot slot) {
  return slot == Slot::kEmbedding || slot == Slot::kFinalNorm || slot == Slot::kHead;
}

std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

class Map {
 public:
  Map(const std::string& path, const ModelSpec& model)
      : path_(path), model_(model), rules_(find_family(model.family()).safetensors) {
    list_modules();
    types_[""] = model.checkpoint_dtype();
    const nlohmann::json object = read_json_object(path, kMaxFileBytes);
    for (const auto& [name, value] : object.items()) add(name, value);
  }

  // Of the cache, and of what no name covers.
  std::string standard() const { return without_integers(types_.at("")); }

  // The one type of all tensors that make up the slot.
  std::string of(Slot slot, int32_t layer) const {
    std::string first;
    std::string type;
    for (const WeightRule& rule : rules_) {
      if (rule.slot != slot) continue;
      const std::string module = module_of(tensor_name(rule, layer));
      std::string own = of_module(module);
      if (outside_layers(slot) && !types_.contains(module)) own = without_integers(own);
      if (!type.empty() && own != type) {
        fail("", first + " is " + type + " and " + module + " is " + own +
                     ", but they are one matrix here; one type for both is needed");
      }
      first = module;
      type = own;
    }
    return type;
  }

 private:
  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw Error(Code::kInvalidArgument,
                "cannot use the types of " + path_ + ": " +
                    (name.empty() ? "" : "\"" + name.substr(0, kMaxName) + "\" ") + what);
  }

  static std::string without_integers(const std::string& type) {
    return is_quantised(parse_dtype(type).value()) ? dtype_name(DType::kBF16) : type;
  }

  // Every module with a weight, and every module that holds such modules; true: one with a matrix
  // in it.
  void list_modules() {
    for (const WeightRule& rule : rules_) {
      if (rule.slot == Slot::kHead && model_.tied_embeddings()) continue;
      const int32_t layers = outside_layers(rule.slot) ? 1 : model_.num_layers();
      for (int32_t layer = 0; layer < layers; ++layer) {
        std::string name = tensor_name(rule, layer);
        for (size_t dot = name.rfind('.'); dot != std::string::npos; dot = name.rfind('.')) {
          name.resize(dot);
          modules_[name] = modules_[name] || !is_vector(rule.slot);
          if (rule.slot == Slot::kEmbedding && embedding_.empty()) embedding_ = name;
        }
      }
    }
  }

  void add(const std::string& name, const nlohmann::json& value) {
    if (!value.is_string() || !parse_dtype(value.get_ref<const std::string&>())) {
      fail("", "the type of \"" + name.substr(0, kMaxName) + "\" is " +
                   (value.is_string() ? "\"" + value.get<std::string>().substr(0, 80) + "\""
                                      : std::string(value.type_name())) +
                   "; \"fp32\", \"bf16\", \"fp16\", \"int8\" or \"int4\" is needed");
    }
    const auto& type = value.get_ref<const std::string&>();
    const auto module = modules_.find(name);
    if (!name.empty() && module == modules_.end()) {
      std::vector<std::string> names;
      for (const auto& [known, has_matrix] : modules_) names.push_back(known);
      fail(name, "is no module of " + model_.name() + "; the nearest is \"" +
                     nearest_name(name, names) + "\"");
    }
    if (!name.empty() && !module->second && type != "fp32") {
      fail(name, "has no matrix: its values are always fp32");
    }
    if (name == embedding_ && is_quantised(parse_dtype(type).value())) {
      fail(name, "is " + type +
                     ", but its rows are looked up and not multiplied; \"fp32\", "
                     "\"bf16\" or \"fp16\" is needed");
    }
    types_[name] = type;
  }

  std::string of_module(std::string name) const {
    for (auto type = types_.find(name);; type = types_.find(name)) {
      if (type != types_.end()) return type->second;
      const size_t dot = name.rfind('.');
      name.resize(dot == std::string::npos ? 0 : dot);
    }
  }

  const std::string path_;
  const ModelSpec& model_;
  const std::vector<WeightRule>& rules_;
  std::map<std::string, bool> modules_;
  std::string embedding_;  // its module
  std::map<std::string, std::string> types_;
};

}  // namespace

DtypeMap read_dtype_map(const std::string& path, const ModelSpec& model) {
  const Map map(path, model);
  DtypeMap result;
  result.dtype = parse_dtype(map.standard()).value();
  result.weights.set_embedding(map.of(Slot::kEmbedding, 0));
  result.weights.set_head(map.of(model.tied_embeddings() ? Slot::kEmbedding : Slot::kHead, 0));
  for (int32_t layer = 0; layer < model.num_layers(); ++layer) {
    LayerDtypes& types = *result.weights.add_layers();
    types.set_qkv(map.of(Slot::kQkv, layer));
    types.set_attention_out(map.of(Slot::kAttentionOut, layer));
    types.set_gate_up(map.of(Slot::kGateUp, layer));
    types.set_down(map.of(Slot::kDown, layer));
  }
  return result;
}

void set_dtypes(const std::string& name, const ModelSpec& model, PlacementOptions& options) {
  options.weight_dtypes.reset();
  if (const auto dtype = parse_dtype(name)) {
    options.dtype = is_quantised(*dtype) ? DType::kBF16 : *dtype;
    if (is_quantised(*dtype)) options.weight_dtypes = layers_of(model, *dtype);
    return;
  }
  const DtypeMap map = read_dtype_map(name, model);
  options.dtype = map.dtype;
  options.weight_dtypes = map.weights;
}

}  // namespace trireme

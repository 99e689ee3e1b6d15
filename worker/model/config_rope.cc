// SPDX-License-Identifier: Apache-2.0
// The rotary embedding in config.json, in both dialects: rope_theta and rope_scaling of published
// checkpoints, rope_parameters of transformers 5.
#include <algorithm>
#include <cmath>

#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

using Object = std::optional<ConfigJson>;

// The number at `key` of `parameters` or at `outer` of the config; they must agree where both say
// it.
std::optional<double> find_number(const ConfigJson& config, const Object& parameters,
                                  const char* key, const char* outer, double min, double max) {
  const auto inside = parameters ? parameters->find_number(key, min, max) : std::nullopt;
  const auto outside = config.find_number(outer, min, max);
  if (inside && outside && *inside != *outside) {
    parameters->refuse(key, "the same value as outside rope_parameters is needed");
  }
  return inside ? inside : outside;
}

// "default" where nothing is said. Old configs call the key "type".
std::string rope_type(const Object& object) {
  if (!object) return "default";
  if (const auto type = object->find_string("rope_type")) return *type;
  return object->find_string("type").value_or("default");
}

void read_llama3(const ConfigJson& object, RopeSpec& rope) {
  rope.set_scaling(ROPE_SCALING_LLAMA3);
  rope.set_low_freq_factor(object.number("low_freq_factor", 1e-3, kMaxRopeFactor));
  rope.set_high_freq_factor(object.number("high_freq_factor", 1e-3, kMaxRopeFactor));
  rope.set_original_context(object.integer("original_max_position_embeddings", 1, kMaxContext));
  if (rope.high_freq_factor() <= rope.low_freq_factor()) {
    object.refuse("high_freq_factor", "more than low_freq_factor is needed");
  }
}

// What cos and sin are multiplied by (Peng et al. 2023, 3.4), and DeepSeek's two-sided form of it.
double yarn_attention_factor(const ConfigJson& object, double factor) {
  if (const auto given = object.find_number("attention_factor", 1e-3, 1e3)) return *given;
  const auto scale = [&](double strength) { return 0.1 * strength * std::log(factor) + 1; };
  const double strength = object.find_number("mscale", 0, 1e3).value_or(0);
  const double all_dim = object.find_number("mscale_all_dim", 0, 1e3).value_or(0);
  if (strength == 0 || all_dim == 0) return scale(1);
  return scale(strength) / scale(all_dim);
}

void read_yarn(const ConfigJson& object, RopeSpec& rope, ModelSpec& spec) {
  rope.set_scaling(ROPE_SCALING_YARN);
  rope.set_original_context(
      static_cast<int32_t>(object.find_integer("original_max_position_embeddings", 1, kMaxContext)
                               .value_or(spec.context_length())));
  rope.set_beta_fast(object.find_number("beta_fast", 1e-3, 1e6).value_or(32));
  rope.set_beta_slow(object.find_number("beta_slow", 1e-3, 1e6).value_or(1));
  rope.set_unrounded(!object.find_boolean("truncate").value_or(true));
  rope.set_attention_factor(yarn_attention_factor(object, rope.factor()));
  // Published configs keep the context that the model was trained with, and reach this one.
  const double reach = std::min<double>(rope.original_context() * rope.factor(), kMaxContext);
  spec.set_context_length(std::max(spec.context_length(), static_cast<int32_t>(reach)));
}

void read_scaling(const Object& object, RopeSpec& rope, ModelSpec& spec) {
  const std::string type = rope_type(object);
  if (type == "default") return;
  if (type != "llama3" && type != "linear" && type != "yarn") {
    object->refuse(object->has("rope_type") ? "rope_type" : "type",
                   "default, linear, llama3 or yarn is supported");
  }
  rope.set_factor(object->number("factor", 1, kMaxRopeFactor));
  rope.set_scaling(ROPE_SCALING_LINEAR);
  if (type == "llama3") read_llama3(*object, rope);
  if (type == "yarn") read_yarn(*object, rope, spec);
}

int32_t rotary_channels(const ConfigJson& config, const Object& parameters, const HfClass& hf,
                        const ModelSpec& spec) {
  constexpr const char* kKey = "partial_rotary_factor";
  const double part = find_number(config, parameters, kKey, kKey, 0, 1).value_or(hf.partial_rotary);
  return static_cast<int32_t>(spec.head_dim() * part);
}

}  // namespace

void read_hf_rope(const ConfigJson& config, const HfClass& hf, ModelSpec& spec) {
  const Object parameters = config.find_object("rope_parameters");
  const bool by_type =
      parameters && (parameters->has("full_attention") || parameters->has("sliding_attention"));
  if (by_type && !hf.local_rope) {
    config.refuse("rope_parameters", "one setting for all layers is supported");
  }
  const Object global = by_type ? parameters->find_object("full_attention") : parameters;
  const Object scaling = config.find_object("rope_scaling");
  if (global && scaling && rope_type(scaling) != rope_type(global)) {
    config.refuse("rope_scaling", "the same type as in rope_parameters is needed");
  }
  RopeSpec& rope = *spec.mutable_rope();
  constexpr const char* kBase = "rope_theta";
  rope.set_base(
      find_number(config, global, kBase, kBase, kMinRopeBase, kMaxRopeBase).value_or(hf.rope_base));
  rope.set_rotary_dim(rotary_channels(config, global, hf, spec));
  read_scaling(global ? global : scaling, rope, spec);
  if (!hf.local_rope) return;
  const Object sliding = by_type ? parameters->find_object("sliding_attention") : std::nullopt;
  RopeSpec& local = *spec.mutable_local_rope();
  local.set_base(
      find_number(config, sliding, kBase, "rope_local_base_freq", kMinRopeBase, kMaxRopeBase)
          .value_or(10000));
  local.set_rotary_dim(rotary_channels(config, sliding, hf, spec));
  read_scaling(sliding, local, spec);
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// config.json and generation_config.json. Two dialects: rope_theta, rope_scaling and torch_dtype of
// published checkpoints; rope_parameters and dtype of transformers 5. A file may hold both.
#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "worker/model/checkpoint.h"
#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

// The number at `key` of the config or of its rope_parameters; they must agree where both say it.
std::optional<double> find_rope_number(const ConfigJson& config, const char* key, double min,
                                       double max) {
  const auto parameters = config.find_object("rope_parameters");
  const auto inner = parameters ? parameters->find_number(key, min, max) : std::nullopt;
  const auto outer = config.find_number(key, min, max);
  if (inner && outer && *inner != *outer) {
    parameters->refuse(key, "the same value as outside rope_parameters is needed");
  }
  return inner ? inner : outer;
}

// "default" where nothing is said. Old configs call the key "type".
std::string rope_type(const std::optional<ConfigJson>& object) {
  if (!object) return "default";
  if (const auto type = object->find_string("rope_type")) return *type;
  return object->find_string("type").value_or("default");
}

void read_scaling(const ConfigJson& config, RopeSpec& rope) {
  const auto parameters = config.find_object("rope_parameters");
  const auto scaling = config.find_object("rope_scaling");
  const auto& object = parameters ? parameters : scaling;
  const std::string type = rope_type(object);
  if (parameters && scaling && rope_type(scaling) != type) {
    config.refuse("rope_scaling", "the same type as in rope_parameters is needed");
  }
  if (type == "default") return;
  if (type != "llama3" && type != "linear") {
    object->refuse(object->has("rope_type") ? "rope_type" : "type",
                   "default, linear or llama3 is supported");
  }
  rope.set_factor(object->number("factor", 1, kMaxRopeFactor));
  rope.set_scaling(ROPE_SCALING_LINEAR);
  if (type == "linear") return;
  rope.set_scaling(ROPE_SCALING_LLAMA3);
  rope.set_low_freq_factor(object->number("low_freq_factor", 1e-3, kMaxRopeFactor));
  rope.set_high_freq_factor(object->number("high_freq_factor", 1e-3, kMaxRopeFactor));
  rope.set_original_context(object->integer("original_max_position_embeddings", 1, kMaxContext));
  if (rope.high_freq_factor() <= rope.low_freq_factor()) {
    object->refuse("high_freq_factor", "more than low_freq_factor is needed");
  }
}

void read_rope(const ConfigJson& config, double default_partial, ModelSpec& spec) {
  RopeSpec& rope = *spec.mutable_rope();
  rope.set_base(find_rope_number(config, "rope_theta", kMinRopeBase, kMaxRopeBase).value_or(10000));
  const double partial =
      find_rope_number(config, "partial_rotary_factor", 0, 1).value_or(default_partial);
  rope.set_rotary_dim(static_cast<int32_t>(spec.head_dim() * partial));
  read_scaling(config, rope);
}

// Options of HF's classes that change the mathematics and that no family here has.
void refuse_unsupported(const ConfigJson& config) {
  const std::string activation = config.find_string("hidden_act").value_or("silu");
  if (activation != "silu" && activation != "swish") {
    config.refuse("hidden_act", "silu is supported");
  }
  if (config.has("sliding_window") && config.find_boolean("use_sliding_window").value_or(false)) {
    config.refuse("sliding_window", "attention over the whole context (null) is supported");
  }
}

// ---- what every family has, whatever its keys ----

const char* checkpoint_dtype(const ConfigJson& config, const ModelFamily& family,
                             const std::string& directory) {
  const char* key = config.has("dtype") ? "dtype" : "torch_dtype";
  std::string name = config.find_string(key).value_or("");
  if (name.empty()) {  // not said: as the embedding is stored
    const auto checkpoint = Checkpoint::open(directory);
    const TensorInfo* embedding = checkpoint->find(family.safetensors.front().name);
    if (embedding != nullptr) name = embedding->type;
  }
  if (name == "float32" || name == "F32") return "fp32";
  if (name == "bfloat16" || name == "BF16") return "bf16";
  if (name == "float16" || name == "F16") return "fp16";
  config.refuse(key, "float32, bfloat16 or float16 is supported");
}

void read_token_ids(const ConfigJson& config, ModelSpec& spec) {
  for (const int64_t id : config.integers("eos_token_id", 0, kMaxVocab - 1)) {
    const auto& known = spec.stop_ids();
    if (std::find(known.begin(), known.end(), id) == known.end()) {
      spec.add_stop_ids(static_cast<int32_t>(id));
    }
  }
  if (spec.bos_id() < 0) {
    const auto bos = config.find_integer("bos_token_id", 0, kMaxVocab - 1);
    spec.set_bos_id(static_cast<int32_t>(bos.value_or(-1)));
  }
}

// "." and "model/" have no last component of their own.
std::string directory_name(const std::string& directory) {
  std::error_code error;
  const fs::path whole = fs::weakly_canonical(directory, error);
  return whole.filename().string();
}

}  // namespace

void read_hf_decoder(const ConfigJson& config, double default_partial, ModelSpec& spec) {
  refuse_unsupported(config);
  spec.set_num_layers(config.integer("num_hidden_layers", 1, kMaxLayers));
  spec.set_hidden_size(config.integer("hidden_size", 1, kMaxHidden));
  spec.set_num_heads(config.integer("num_attention_heads", 1, kMaxHeads));
  spec.set_num_kv_heads(config.has("num_key_value_heads")
                            ? config.integer("num_key_value_heads", 1, kMaxHeads)
                            : spec.num_heads());
  if (!config.has("head_dim") && spec.hidden_size() % spec.num_heads() != 0) {
    config.refuse("head_dim", "it is needed where the heads do not divide hidden_size");
  }
  spec.set_head_dim(config.has("head_dim") ? config.integer("head_dim", 1, kMaxHeadDim)
                                           : spec.hidden_size() / spec.num_heads());
  spec.set_ffn_size(config.integer("intermediate_size", 1, kMaxFfn));
  spec.set_vocab_size(config.integer("vocab_size", 1, kMaxVocab));
  spec.set_context_length(config.integer("max_position_embeddings", 1, kMaxContext));
  spec.set_norm_eps(config.number("rms_norm_eps", kMinNormEps, kMaxNormEps));
  spec.set_tied_embeddings(config.find_boolean("tie_word_embeddings").value_or(false));
  read_rope(config, default_partial, spec);
}

ModelSpec read_hf_spec(const std::string& directory) {
  const ConfigJson config((fs::path(directory) / "config.json").string());
  const std::string type = config.find_string("model_type").value_or("");
  const auto families = model_families();
  const auto family = std::find_if(families.begin(), families.end(),
                                   [&](const ModelFamily* f) { return type == f->name; });
  if (family == families.end()) {
    config.refuse("model_type", "one of " + model_family_names() + " is supported");
  }
  if (config.has("quantization_config")) {
    config.refuse("quantization_config",
                  "plain fp32, bf16 or fp16 weights are supported, and GGUF");
  }
  ModelSpec spec;
  (*family)->read_config(config, spec);
  spec.set_name(directory_name(directory));
  spec.set_checkpoint_format("safetensors");
  spec.set_checkpoint_dtype(checkpoint_dtype(config, **family, directory));
  spec.set_bos_id(-1);
  read_token_ids(config, spec);
  const std::string generation = (fs::path(directory) / "generation_config.json").string();
  if (fs::exists(generation)) read_token_ids(ConfigJson(generation), spec);
  finish_spec(**family, config.path(), spec);
  return spec;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// config.json and generation_config.json. Two dialects, torch_dtype of published checkpoints and
// dtype of transformers 5; a file may hold both.
#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "worker/model/checkpoint.h"
#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

Activation read_activation(const ConfigJson& config, const HfClass& hf) {
  const char* key = config.has("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string own = hf.activation;
  const std::string name = config.find_string(key).value_or(own);
  if (name == "silu" || name == "swish") return ACTIVATION_SILU;
  // The first Gemma's configs say "gelu" under the older key and mean this one.
  const bool legacy = name == "gelu" && own != "silu" && std::string(key) == "hidden_act";
  if (name == "gelu_pytorch_tanh" || legacy) return ACTIVATION_GELU_TANH;
  config.refuse(key, "silu or gelu_pytorch_tanh is supported");
}

// A family without windows may not be given one.
void refuse_windows(const ConfigJson& config, ModelSpec& spec) {
  if (config.has("sliding_window") && config.find_boolean("use_sliding_window").value_or(true)) {
    config.refuse("sliding_window", "attention over the whole context (null) is supported");
  }
  read_hf_windows(config, 0, {}, spec);
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

void read_hf_decoder(const ConfigJson& config, const HfClass& hf, ModelSpec& spec) {
  spec.set_activation(read_activation(config, hf));
  spec.set_num_layers(config.integer("num_hidden_layers", 1, kMaxLayers));
  spec.set_hidden_size(config.integer("hidden_size", 1, kMaxHidden));
  spec.set_num_heads(config.integer("num_attention_heads", 1, kMaxHeads));
  spec.set_num_kv_heads(config.has("num_key_value_heads")
                            ? config.integer("num_key_value_heads", 1, kMaxHeads)
                            : spec.num_heads());
  if (config.has("head_dim")) {
    spec.set_head_dim(config.integer("head_dim", 1, kMaxHeadDim));
  } else if (hf.head_dim > 0) {
    spec.set_head_dim(hf.head_dim);
  } else if (spec.hidden_size() % spec.num_heads() == 0) {
    spec.set_head_dim(spec.hidden_size() / spec.num_heads());
  } else {
    config.refuse("head_dim", "it is needed where the heads do not divide hidden_size");
  }
  spec.set_ffn_size(config.integer("intermediate_size", 1, kMaxFfn));
  spec.set_vocab_size(config.integer("vocab_size", 1, kMaxVocab));
  spec.set_context_length(config.integer("max_position_embeddings", 1, kMaxContext));
  spec.set_norm_eps(config.number("rms_norm_eps", kMinNormEps, kMaxNormEps));
  spec.set_tied_embeddings(config.find_boolean("tie_word_embeddings").value_or(hf.tied_embeddings));
  read_hf_rope(config, hf, spec);
  if (!hf.windows) refuse_windows(config, spec);
}

void read_hf_windows(const ConfigJson& config, int32_t window, std::vector<bool> slides,
                     ModelSpec& spec) {
  const auto layers = static_cast<size_t>(spec.num_layers());
  if (config.has("layer_types")) {
    slides.clear();
    for (const std::string& type : config.strings("layer_types")) {
      if (type != "full_attention" && type != "sliding_attention") {
        config.refuse("layer_types", "full_attention and sliding_attention are supported");
      }
      slides.push_back(type == "sliding_attention");
    }
    if (slides.size() != layers) {
      config.refuse("layer_types",
                    "one type for each of the " + std::to_string(layers) + " layers is needed");
    }
  }
  if (std::find(slides.begin(), slides.end(), true) == slides.end()) return;
  if (window == 0) config.refuse("layer_types", "no layer can slide without a sliding_window");
  for (const bool slide : slides) spec.add_windows(slide ? window : 0);
}

ModelSpec read_hf_spec(const std::string& directory) {
  const ConfigJson config((fs::path(directory) / "config.json").string());
  const std::string type = config.find_string("model_type").value_or("");
  const auto families = model_families();
  const auto family = std::find_if(families.begin(), families.end(),
                                   [&](const ModelFamily* f) { return type == f->model_type; });
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
  if (name_exists(generation)) read_token_ids(ConfigJson(generation), spec);
  finish_spec(**family, config.path(), spec);
  return spec;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Qwen 2 and 2.5: Llama with biases on query, key and value, and windows on the upper layers if the
// config turns them on. Qwen 3: no biases, and norms of the query and key heads.
#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

void read_windows(const ConfigJson& config, ModelSpec& spec) {
  if (!config.find_boolean("use_sliding_window").value_or(false)) {
    return read_hf_windows(config, 0, {}, spec);
  }
  const int32_t window = config.integer("sliding_window", 1, kMaxContext);
  std::vector<bool> slides;
  if (!config.has("layer_types")) {
    const int32_t first = config.integer("max_window_layers", 0, kMaxLayers);
    for (int32_t i = 0; i < spec.num_layers(); ++i) slides.push_back(i >= first);
  }
  read_hf_windows(config, window, slides, spec);
}

void read_qwen2(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, {.windows = true}, spec);
  read_windows(config, spec);
  spec.set_qkv_bias(true);
}

void read_qwen3(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, {.head_dim = 128, .windows = true}, spec);
  read_windows(config, spec);
  spec.set_qkv_bias(config.find_boolean("attention_bias").value_or(false));
  spec.set_attention_out_bias(spec.qkv_bias());
  spec.set_qk_norm(true);
}

}  // namespace

const ModelFamily kQwen2 = {
    .name = "qwen2",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_qwen2,
    .safetensors = llama_safetensors_rules(),
    .gguf = llama_gguf_rules(),
    .layer_module = "model.layers.{}",
};

const ModelFamily kQwen3 = {
    .name = "qwen3",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_qwen3,
    .safetensors = joined(llama_safetensors_rules(), qk_norm_safetensors_rules()),
    .gguf = joined(llama_gguf_rules(), qk_norm_gguf_rules()),
    .layer_module = "model.layers.{}",
};

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Mistral: Llama whose layers see a sliding window of positions (7B v0.1), or all of them (later).
#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

void read_config(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, {.windows = true}, spec);
  // HF's class would take 4096 in silence; every published config says the one or the other.
  if (!config.says("sliding_window")) {
    config.refuse("sliding_window", "the positions that a token sees are needed, or null for all");
  }
  const auto window = config.find_integer("sliding_window", 1, kMaxContext).value_or(0);
  const std::vector<bool> slides(static_cast<size_t>(spec.num_layers()), window > 0);
  read_hf_windows(config, static_cast<int32_t>(window), slides, spec);
}

}  // namespace

const ModelFamily kMistral = {
    .name = "mistral",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_config,
    .safetensors = llama_safetensors_rules(),
    .gguf = {},  // llama.cpp writes these models as "llama"
    .layer_module = "model.layers.{}",
};

}  // namespace trireme

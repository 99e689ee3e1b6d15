// SPDX-License-Identifier: Apache-2.0
// Qwen 2 and 2.5: Llama with biases on query, key and value.
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

void read_config(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, 1.0, spec);
  spec.set_qkv_bias(true);
}

}  // namespace

const ModelFamily kQwen2 = {
    .name = "qwen2",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_config,
    .safetensors = llama_safetensors_rules(),
    .gguf = llama_gguf_rules(),
    .gguf_permutes_qk = false,
    .layer_module = "model.layers.{}",
};

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// The rows of the family table, and what several of them share.
#pragma once

#include <vector>

#include "worker/model/family.h"

namespace trireme {

extern const ModelFamily kChatglm;
extern const ModelFamily kGlm;
extern const ModelFamily kLlama;
extern const ModelFamily kQwen2;

// The names that Llama has in HF checkpoints and in GGUF files, and that others took over.
std::vector<WeightRule> llama_safetensors_rules();
std::vector<WeightRule> llama_gguf_rules();

// Dimensions, norm, rotary embedding and tying under the keys of HF's own model classes.
// default_partial: the part of head_dim that rotates where the config does not say.
void read_hf_decoder(const ConfigJson& config, double default_partial, ModelSpec& spec);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// The rows of the family table, and what several of them share.
#pragma once

#include <vector>

#include "worker/model/family.h"

namespace trireme {

extern const ModelFamily kChatglm;
extern const ModelFamily kGemma;
extern const ModelFamily kGemma2;
extern const ModelFamily kGemma3;
extern const ModelFamily kGlm;
extern const ModelFamily kGlm4;
extern const ModelFamily kLlama;
extern const ModelFamily kMistral;
extern const ModelFamily kQwen2;
extern const ModelFamily kQwen3;

// The names that Llama has in HF checkpoints and in GGUF files, and that others took over.
std::vector<WeightRule> llama_safetensors_rules();
std::vector<WeightRule> llama_gguf_rules();
// What some families have besides.
std::vector<WeightRule> qk_norm_safetensors_rules();
std::vector<WeightRule> qk_norm_gguf_rules();
std::vector<WeightRule> post_norm_gguf_rules();

std::vector<WeightRule> joined(std::vector<WeightRule> rules, const std::vector<WeightRule>& more);

// What a model class of HF takes where config.json is silent, and which options it knows.
struct HfClass {
  int32_t head_dim = 0;       // 0: hidden_size / heads
  double partial_rotary = 1;  // the part of head_dim that rotates
  double rope_base = 10000;
  const char* activation = "silu";
  bool tied_embeddings = false;
  bool windows = false;     // the family reads them; else an option that sets one is refused
  bool local_rope = false;  // layers with a window may have a rotary embedding of their own
};

// Dimensions, norm, rotary embedding, activation and tying under the keys of HF's own classes.
void read_hf_decoder(const ConfigJson& config, const HfClass& hf, ModelSpec& spec);
// Its part about the rotary embedding; dimensions are filled before.
void read_hf_rope(const ConfigJson& config, const HfClass& hf, ModelSpec& spec);

// Gives the sliding layers `window` positions: those that layer_types names, or `slides` (one for
// each layer) where the config has no such list.
void read_hf_windows(const ConfigJson& config, int32_t window, std::vector<bool> slides,
                     ModelSpec& spec);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// A model family is data: how its config reads, what its tensors are called and how each is split.
// To add one: a file with its row and a line in the list of family.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

// Where a tensor goes in a layer of the decoder (or outside the layers).
enum class Slot : uint8_t {
  kEmbedding,          // [V, H]
  kFinalNorm,          // [H]
  kHead,               // [V, H]; absent when tied
  kAttentionNorm,      // [H]
  kQkv,                // [(Q + 2K)·D, H], rows Q | K | V
  kQkvBias,            // [(Q + 2K)·D]
  kQNorm,              // [D], of each query head
  kKNorm,              // [D], of each key head
  kAttentionOut,       // [H, Q·D]
  kAttentionOutBias,   // [H]
  kPostAttentionNorm,  // [H], of the attention's output before it is added
  kMlpNorm,            // [H]
  kGateUp,             // [2F, H], rows gate | up
  kGateUpBias,         // [2F]
  kDown,               // [H, F]
  kDownBias,           // [H]
  kPostMlpNorm,        // [H], of the FFN's output before it is added
};

// The parts of a slot's rows that are split apart among tensor-parallel ranks, each by its own
// axis.
enum class Segment : uint8_t { kQ, kK, kV, kGate, kUp, kVocab, kHeadDim, kWhole };

// One tensor of a checkpoint: `name` with {} for the layer number holds the rows of `segments`, in
// order. A slot may be filled by several rules (q, k and v apart) or by one (fused).
struct WeightRule {
  const char* name;
  Slot slot;
  std::vector<Segment> segments;
};

class ConfigJson;

struct ModelFamily {
  const char* name;               // ModelSpec.family, GGUF's architecture
  const char* model_type = name;  // HF's
  RopePairing pairing;            // of the weights once loaded
  // Fills dimensions, rope, biases and tying from config.json; refuses what changes the
  // mathematics.
  void (*read_config)(const ConfigJson& config, ModelSpec& spec);
  std::vector<WeightRule> safetensors;  // HF names
  std::vector<WeightRule> gguf;         // llama.cpp names; empty: not read from GGUF
  bool gguf_permutes_qk = false;        // GGUF stores Q and K rows with rotary pairs adjacent
  const char* layer_module;             // "transformer.encoder.layers.{}": the unit of a device map
  // Safetensors hold norm weights less this; GGUF files hold them whole.
  float norm_offset = 0;
  // Of the encoder of a learned prefix (P-tuning v2); null: the family has none.
  const char* prefix_module = nullptr;
  // Holds the tables of the rotary embedding, which follow from the config, so many times; defined
  // before the layers or after the last norm.
  const char* rotary_module = "model.rotary_emb";
  int rotary_copies = 2;  // as scaled, and the original
  bool rotary_first = false;
};

std::span<const ModelFamily* const> model_families();
std::string model_family_names();                         // HF's model types: "chatglm, glm, …"
const ModelFamily& find_family(const std::string& name);  // throws kInvalidArgument with the list

// The rules for the names of this checkpoint's format.
const std::vector<WeightRule>& weight_rules(const ModelSpec& model);
std::string tensor_name(const WeightRule& rule, int32_t layer);

// Reads config.json and generation_config.json of a directory (both HF dialects), or the metadata
// of a GGUF file. Throws kNotFound / kInvalidArgument naming the key, what was found and what is
// needed; an option that changes the mathematics and is not supported is refused, never ignored.
ModelSpec read_model_spec(const std::string& path);

}  // namespace trireme

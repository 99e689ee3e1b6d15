// SPDX-License-Identifier: Apache-2.0
// The rotary embedding in the metadata of a GGUF file.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "worker/model/config.h"
#include "worker/model/gguf_metadata.h"

namespace trireme {
namespace {

// What Llama 3.1's scaling divides the frequency of channel pair i by.
double llama3_divisor(const RopeSpec& rope, int32_t i) {
  const double frequency = std::pow(rope.base(), -2.0 * i / rope.rotary_dim());
  const double turns = rope.original_context() * frequency / (2 * std::numbers::pi);
  if (turns > rope.high_freq_factor()) return 1;
  if (turns < rope.low_freq_factor()) return rope.factor();
  const double blend =
      (turns - rope.low_freq_factor()) / (rope.high_freq_factor() - rope.low_freq_factor());
  return 1 / ((1 - blend) / rope.factor() + blend);
}

bool gives_divisors(const RopeSpec& rope, const std::vector<float>& divisors) {
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double expected = llama3_divisor(rope, static_cast<int32_t>(i));
    // Written so that NaN is refused.
    if (!(std::abs(divisors[i] - expected) <= 1e-3 * expected)) return false;
  }
  return true;
}

// GGUF keeps no parameters of Llama 3's scaling, only its divisors. The published models differ in
// factor and original context, so those that give the stored divisors are looked for.
void read_llama3_divisors(const GgufMetadata& metadata, RopeSpec& rope) {
  constexpr const char* kName = "rope_freqs.weight";
  const auto [tensor, file] = metadata.files().find(kName);
  if (tensor == nullptr) return;
  if (rope.scaling() != ROPE_SCALING_NONE) {
    metadata.refuse(kName, "there beside rope.scaling.type", "one of the two is supported");
  }
  const int32_t pairs = rope.rotary_dim() / 2;
  if (tensor->shape != std::vector<int64_t>{pairs} || !is_type(*tensor, "F32")) {
    metadata.refuse(kName, "of another shape or type",
                    "F32 [" + std::to_string(pairs) + "] is needed");
  }
  std::vector<float> divisors(pairs);
  std::memcpy(divisors.data(), file->file().data() + tensor->offset, pairs * sizeof(float));
  rope.set_scaling(ROPE_SCALING_LLAMA3);
  rope.set_factor(divisors.empty() ? 1 : *std::max_element(divisors.begin(), divisors.end()));
  rope.set_low_freq_factor(1);
  rope.set_high_freq_factor(4);
  // Powers of two, from 64 on; those below, which only models of tests have, come last.
  constexpr int32_t kPowers = std::bit_width(static_cast<uint32_t>(kMaxContext));
  for (int32_t i = 0; i < kPowers; ++i) {
    rope.set_original_context(1 << (i + 6) % kPowers);
    if (gives_divisors(rope, divisors)) return;
  }
  metadata.refuse(kName, "not the scaling of Llama 3", "no other divisors are supported");
}

// As llama.cpp computes it: the attention factors of the file multiply the one that follows from
// the scale (Peng et al. 2023, 3.4), where HF's attention_factor replaces it.
void read_yarn(const GgufMetadata& metadata, ModelSpec& spec) {
  RopeSpec& rope = *spec.mutable_rope();
  const auto share = [&](const char* name) { return metadata.number(name, 1e-3, 1e3, 1); };
  rope.set_scaling(ROPE_SCALING_YARN);
  rope.set_original_context(metadata.integer("rope.scaling.original_context_length", 1, kMaxContext,
                                             spec.context_length()));
  rope.set_beta_fast(metadata.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32));
  rope.set_beta_slow(metadata.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1));
  rope.set_attention_factor((0.1 * std::log(rope.factor()) + 1) *
                            share("rope.scaling.attn_factor") *
                            share("rope.scaling.yarn_attn_factor"));
  if (const double blend = metadata.number("rope.scaling.yarn_ext_factor", -1, 1e3, 1);
      blend != 1 && blend != -1) {  // -1: the default
    metadata.refuse(metadata.key("rope.scaling.yarn_ext_factor"), std::to_string(blend),
                    "1 is supported");
  }
  if (const double log = metadata.number("rope.scaling.yarn_log_multiplier", -1e3, 1e3, 0);
      log != 0) {
    metadata.refuse(metadata.key("rope.scaling.yarn_log_multiplier"), std::to_string(log),
                    "0 is supported");
  }
  // Published files keep the context that the model was trained with, and reach this one.
  const double reach = std::min<double>(rope.original_context() * rope.factor(), kMaxContext);
  spec.set_context_length(std::max(spec.context_length(), static_cast<int32_t>(reach)));
}

}  // namespace

void read_gguf_rope(const GgufMetadata& metadata, ModelSpec& spec) {
  RopeSpec& rope = *spec.mutable_rope();
  rope.set_base(metadata.number("rope.freq_base", kMinRopeBase, kMaxRopeBase, 10000));
  rope.set_rotary_dim(metadata.integer("rope.dimension_count", 1, kMaxHeadDim, spec.head_dim()));
  const std::string scaling = metadata.string("rope.scaling.type");
  double factor = 1;
  if (scaling == "linear" || scaling == "yarn") {
    factor = metadata.number("rope.scaling.factor", 1, kMaxRopeFactor, NAN);
  } else if (scaling.empty()) {
    factor = metadata.number("rope.scale_linear", 1, kMaxRopeFactor, 1);  // the older key
  } else if (scaling != "none") {
    metadata.refuse(metadata.key("rope.scaling.type"), scaling,
                    "none, linear or yarn is supported");
  }
  if (factor != 1) {
    rope.set_scaling(ROPE_SCALING_LINEAR);
    rope.set_factor(factor);
  }
  if (scaling == "yarn" && factor != 1) read_yarn(metadata, spec);
  read_llama3_divisors(metadata, rope);
}

}  // namespace trireme

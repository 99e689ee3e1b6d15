// SPDX-License-Identifier: Apache-2.0
// What reading an HF config and reading GGUF metadata have in common.
#pragma once

#include <cstdint>
#include <string>

#include "worker/model/family.h"

namespace trireme {

// Bounds of any dimension: wide enough for every published model, and small enough that products of
// three of them fit 64 bits.
constexpr int32_t kMaxLayers = 4096;
constexpr int32_t kMaxHidden = 1 << 17;
constexpr int32_t kMaxHeads = 4096;
constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kMaxFfn = 1 << 20;
constexpr int32_t kMaxVocab = 1 << 22;
constexpr int32_t kMaxContext = 1 << 24;
constexpr double kMinNormEps = 1e-12;
constexpr double kMaxNormEps = 0.1;
constexpr double kMinRopeBase = 1;
constexpr double kMaxRopeBase = 1e12;
constexpr double kMaxRopeFactor = 1e6;

ModelSpec read_hf_spec(const std::string& directory);
ModelSpec read_gguf_spec(const std::string& path);

// Checks what several fields say together, and lists the modules. `source` begins the messages.
void finish_spec(const ModelFamily& family, const std::string& source, ModelSpec& spec);

}  // namespace trireme

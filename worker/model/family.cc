// SPDX-License-Identifier: Apache-2.0
#include "worker/model/family.h"

#include <algorithm>
#include <string_view>

#include "kernels/base/error.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

constexpr const ModelFamily* kFamilies[] = {&kChatglm, &kGemma, &kGemma2,  &kGemma3, &kGlm,
                                            &kGlm4,    &kLlama, &kMistral, &kQwen2,  &kQwen3};

}  // namespace

std::span<const ModelFamily* const> model_families() { return kFamilies; }

std::string model_family_names() {
  std::string names;
  for (const ModelFamily* family : kFamilies) {
    names += std::string(names.empty() ? "" : ", ") + family->model_type;
  }
  return names;
}

const ModelFamily& find_family(const std::string& name) {
  for (const ModelFamily* family : kFamilies) {
    if (name == family->name) return *family;
  }
  throw Error(Code::kInvalidArgument, "cannot serve the model family '" + name.substr(0, 80) +
                                          "': one of " + model_family_names() + " is needed");
}

const std::vector<WeightRule>& weight_rules(const ModelSpec& model) {
  const ModelFamily& family = find_family(model.family());
  return model.checkpoint_format() == "gguf" ? family.gguf : family.safetensors;
}

std::vector<WeightRule> joined(std::vector<WeightRule> rules, const std::vector<WeightRule>& more) {
  rules.insert(rules.end(), more.begin(), more.end());
  return rules;
}

std::string tensor_name(const WeightRule& rule, int32_t layer) {
  std::string name = rule.name;
  const size_t place = name.find("{}");
  if (place != std::string::npos) name.replace(place, 2, std::to_string(layer));
  return name;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "worker/device_sampler.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "worker/sampler.h"

namespace trireme {

void DeviceSampler::add(const DrawSpec& spec, int64_t vocab_size, int32_t position,
                        std::span<const int32_t> history) {
  check_draw(spec, static_cast<size_t>(vocab_size));
  DrawRow row;
  row.temperature = spec.temperature();
  row.top_p = spec.top_p();
  row.min_p = spec.min_p();
  row.top_k = spec.top_k();
  row.uniform = uniform_draw(spec.seed(), position);
  row.first_change = static_cast<int32_t>(changes_.size());
  change_scores(spec, history);
  row.num_changes = static_cast<int32_t>(changes_.size()) - row.first_change;
  rows_.push_back(row);
}

// All that happens to an id in this row, once.
void DeviceSampler::change_scores(const DrawSpec& spec, std::span<const int32_t> history) {
  of_row_.clear();
  for (int index = 0; index < spec.bias_ids_size(); ++index) {
    of_row_[spec.bias_ids(index)].bias += spec.biases(index);
  }
  if (has_penalties(spec)) {
    const double factor = spec.repetition_penalty() == 0 ? 1 : spec.repetition_penalty();
    for (const int32_t id : history) of_row_[id].factor = factor;
    const auto num_prompt = static_cast<size_t>(std::max(spec.num_prompt(), 0));
    const auto output = history.subspan(std::min(num_prompt, history.size()));
    for (const int32_t id : output) of_row_[id].less += 1;  // how often, for now
    for (auto& [id, change] : of_row_) {
      if (change.less == 0) continue;
      change.less = spec.frequency_penalty() * change.less + spec.presence_penalty();
    }
  }
  for (const int32_t id : spec.banned_ids()) of_row_[id].banned = 1;
  for (auto& [id, change] : of_row_) {
    change.id = id;
    changes_.push_back(change);
  }
}

std::span<const int32_t> DeviceSampler::draw_all(Tensor logits) {
  drawn_.resize(rows_.size());
  const bool done = backend_.sample(drawn_, logits, rows_, changes_, logical_vocab_size_);
  rows_.clear();
  changes_.clear();
  if (!done) return {};
  for (const int32_t id : drawn_) {
    if (id >= 0) continue;
    throw Error(Code::kInternal,
                std::string("cannot sample: ") +
                    (id == kLogitsNotFinite ? "the logits of a position are not finite"
                                            : "no token of a position has a finite logit") +
                    "; the weights or their dtype overflow, try --dtype fp32");
  }
  return drawn_;
}

}  // namespace trireme

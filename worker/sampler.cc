// SPDX-License-Identifier: Apache-2.0
#include "worker/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/error.h"

namespace trireme {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t value) {
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
  value = (value ^ value >> 27) * 0x94D049BB133111EBu;
  return value ^ value >> 31;
}

// Sorts the `count` best of `order` to its front: higher logit first, then lower id.
void sort_best(std::span<const float> logits, std::vector<int32_t>& order, size_t count) {
  const auto better = [logits](int32_t a, int32_t b) {
    const float left = logits[static_cast<size_t>(a)];
    const float right = logits[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>(std::min(count, order.size()));
  std::partial_sort(order.begin(), middle, order.end(), better);
}

}  // namespace

double uniform_draw(uint64_t seed, int32_t position) {
  const uint64_t bits = mix(mix(seed + 0x9E3779B97F4A7C15u) +
                            0x9E3779B97F4A7C15u * (static_cast<uint64_t>(position) + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

int32_t Sampler::pick(std::span<const float> logits, const DrawSpec& spec, int32_t position) {
  const auto best =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (spec.temperature() == 0) return best;

  const double top = logits[static_cast<size_t>(best)];
  const auto weight = [&](int32_t id) {
    return std::exp((logits[static_cast<size_t>(id)] - top) / double{spec.temperature()});
  };
  const size_t limit =
      spec.top_k() > 0 ? std::min(static_cast<size_t>(spec.top_k()), logits.size()) : logits.size();
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  double total = 0;
  if (limit == logits.size()) {
    for (const int32_t id : order_) total += weight(id);
  } else {
    sort_best(logits, order_, limit);
    for (size_t index = 0; index < limit; ++index) total += weight(order_[index]);
  }

  // Only as much of the order is sorted as the nucleus turns out to need.
  size_t kept = limit;
  double kept_total = total;
  if (spec.top_p() < 1) {
    size_t sorted = limit == logits.size() ? 0 : limit;
    kept_total = 0;
    for (kept = 0; kept < limit && kept_total < spec.top_p() * total; ++kept) {
      if (kept == sorted) {
        sorted = std::min(limit, std::max<size_t>(64, 4 * sorted));
        sort_best(logits, order_, sorted);
      }
      kept_total += weight(order_[kept]);
    }
  }
  double left = uniform_draw(spec.seed(), position) * kept_total;
  for (size_t index = 0; index < kept; ++index) {
    left -= weight(order_[index]);
    if (left < 0) return order_[index];
  }
  return order_[kept - 1];  // rounding used up the last weight
}

void Sampler::draw(std::span<const float> logits, const DrawSpec& spec, int32_t position,
                   SampledToken& result) {
  const auto highest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - highest);
  if (!std::isfinite(sum) || !std::isfinite(highest)) {
    throw Error(
        Code::kInternal,
        "cannot sample: the logits of a position are not finite; the weights or their dtype "
        "overflow, try --dtype fp32");
  }
  const double log_sum = highest + std::log(sum);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(logits[static_cast<size_t>(id)] - log_sum);
  };
  const auto usable = std::min(logits.size(), static_cast<size_t>(logical_vocab_size_));
  result.set_token(pick(logits.first(usable), spec, position));
  result.set_logprob(logprob(result.token()));
  if (spec.logprobs() <= 0) return;
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto count = std::min(static_cast<size_t>(spec.logprobs()), logits.size());
  sort_best(logits, order_, count);
  for (size_t index = 0; index < count; ++index) {
    TokenLogprob& entry = *result.add_logprobs();
    entry.set_id(order_[index]);
    entry.set_logprob(logprob(order_[index]));
  }
}

}  // namespace trireme

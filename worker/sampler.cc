// SPDX-License-Identifier: Apache-2.0
#include "worker/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;  // 2^64 over the golden ratio

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t value) {
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
  value = (value ^ value >> 27) * 0x94D049BB133111EBu;
  return value ^ value >> 31;
}

constexpr double kNone = -std::numeric_limits<double>::infinity();

[[noreturn]] void refuse_logits(const std::string& what) {
  throw Error(Code::kInternal,
              "cannot sample: " + what + "; the weights or their dtype overflow, try --dtype fp32");
}

[[noreturn]] void refuse_spec(const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot sample: " + what);
}

void check_row(int32_t id, size_t rows) {
  if (id >= 0 && static_cast<size_t>(id) < rows) return;
  refuse_spec("a bias or ban of token " + std::to_string(id) + ", the logits have " +
              std::to_string(rows) + " rows");
}

}  // namespace

// Not the service's ranges, but what every draw relies on.
void check_draw(const DrawSpec& spec, size_t rows) {
  double sum = spec.temperature() + spec.repetition_penalty() + spec.frequency_penalty() +
               spec.presence_penalty();
  for (const double bias : spec.biases()) sum += bias;
  if (!std::isfinite(sum) || spec.temperature() < 0 || spec.repetition_penalty() < 0 ||
      !(spec.top_p() > 0) || !(spec.min_p() <= 1) || spec.logprobs() < 0) {
    refuse_spec("a parameter of its draw is not finite, or out of its range");
  }
  if (spec.bias_ids_size() != spec.biases_size()) {
    refuse_spec(std::to_string(spec.biases_size()) + " biases for " +
                std::to_string(spec.bias_ids_size()) + " ids");
  }
  for (const int32_t id : spec.bias_ids()) check_row(id, rows);
  for (const int32_t id : spec.banned_ids()) check_row(id, rows);
}

namespace {

using Candidate = Sampler::Candidate;

// Buckets of candidates by weight, best first: 16 of each factor of two.
constexpr size_t kBuckets = 1024;
size_t bucket_of(double weight) {
  const uint64_t below = std::bit_cast<uint64_t>(1.0) - std::bit_cast<uint64_t>(weight);
  return std::min(static_cast<size_t>(below >> 48), kBuckets - 1);
}

// Copies what is kept to `to`, which may be where it comes from, in its order, and counts it.
// Without a branch, which no processor could foresee. REQUIRES: room for all.
template <class Predicate>
size_t keep_if(std::span<const Candidate> from, Candidate* to, Predicate predicate) {
  size_t count = 0;
  for (const Candidate& one : from) {
    to[count] = one;
    count += predicate(one) ? 1 : 0;
  }
  return count;
}

// Lanes, for one sum would wait for each addition.
double sum_of(std::span<const Candidate> candidates) {
  std::array<double, 4> lanes{};
  size_t index = 0;
  for (; index + lanes.size() <= candidates.size(); index += lanes.size()) {
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      lanes[lane] += candidates[index + lane].weight;
    }
  }
  double sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  for (; index < candidates.size(); ++index) sum += candidates[index].weight;
  return sum;
}

// Eight lanes, for one would wait for each comparison.
double highest(std::span<const double> scores) {
  std::array<double, 8> lanes;
  lanes.fill(kNone);
  size_t index = 0;
  for (; index + lanes.size() <= scores.size(); index += lanes.size()) {
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      lanes[lane] = std::max(lanes[lane], scores[index + lane]);
    }
  }
  double best = *std::max_element(lanes.begin(), lanes.end());
  for (; index < scores.size(); ++index) best = std::max(best, scores[index]);
  return best;
}

// The k-th best. REQUIRES: 1 <= k <= scores.size().
double kth_best(std::span<const double> scores, size_t k, std::vector<double>& scratch) {
  constexpr size_t kFew = 1024;  // a heap of so many is faster than a partition of all
  if (k <= kFew) {
    scratch.resize(k);
    std::partial_sort_copy(scores.begin(), scores.end(), scratch.begin(), scratch.end(),
                           std::greater<>());
    return scratch.back();
  }
  scratch.assign(scores.begin(), scores.end());
  const auto place = scratch.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(scratch.begin(), place, scratch.end(), std::greater<>());
  return *place;
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
  const uint64_t bits = mix(mix(seed + kGolden) + kGolden * (static_cast<uint64_t>(position) + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

uint64_t seed_of_answer(uint64_t seed, int32_t index) {
  return index == 0 ? seed : mix(seed + kGolden * static_cast<uint64_t>(index));
}

bool has_penalties(const DrawSpec& spec) {
  const double repetition = spec.repetition_penalty();
  return (repetition != 0 && repetition != 1) || spec.frequency_penalty() != 0 ||
         spec.presence_penalty() != 0;
}

void Sampler::load(std::span<const float> logits) {
  scores_.resize(logits.size());
  bool finite = true;
  for (size_t id = 0; id < logits.size(); ++id) {
    finite &= logits[id] < std::numeric_limits<float>::infinity();  // false for NaN too
    scores_[id] = logits[id];
  }
  if (!finite) refuse_logits("the logits of a position are not finite");
}

void Sampler::adjust(const DrawSpec& spec, std::span<const int32_t> history) {
  for (int index = 0; index < spec.bias_ids_size(); ++index) {
    scores_[static_cast<size_t>(spec.bias_ids(index))] += spec.biases(index);
  }
  if (has_penalties(spec)) penalise(spec, history);
  for (const int32_t id : spec.banned_ids()) {
    scores_[static_cast<size_t>(id)] = kNone;
  }
}

void Sampler::penalise(const DrawSpec& spec, std::span<const int32_t> history) {
  counts_.resize(scores_.size());
  const auto count = [this](int32_t id) -> int32_t& { return counts_[static_cast<size_t>(id)]; };
  const double repetition = spec.repetition_penalty() == 0 ? 1 : spec.repetition_penalty();
  for (const int32_t id : history) {
    if (count(id)++ > 0) continue;
    double& score = scores_[static_cast<size_t>(id)];
    score = score < 0 ? score * repetition : score / repetition;
  }
  for (const int32_t id : history) count(id) = 0;
  const auto num_prompt = static_cast<size_t>(std::max(spec.num_prompt(), 0));
  const auto output = history.subspan(std::min(num_prompt, history.size()));
  for (const int32_t id : output) ++count(id);
  for (const int32_t id : output) {
    if (count(id) == 0) continue;  // where it stood first, all were taken off
    scores_[static_cast<size_t>(id)] -=
        spec.frequency_penalty() * count(id) + spec.presence_penalty();
    count(id) = 0;
  }
}

// Cuts candidates_ to the best of them that reach the share top_p.
void Sampler::keep_nucleus(double top_p) {
  const double total = sum_of(candidates_);
  double needed = top_p * total;
  // Those below the cut-off do not make up 1 - top_p all together: the boundary lies above it.
  // The best one's weight is 1, which rounding must not cut off.
  const double cutoff =
      std::min(1.0, (1 - top_p) * total / static_cast<double>(candidates_.size()));
  if (heads_.size() < candidates_.size()) heads_.resize(candidates_.size());
  size_t num_heads = keep_if(candidates_, heads_.data(),
                             [cutoff](const Candidate& one) { return one.weight >= cutoff; });

  // Which bucket has the boundary in it, then which candidate: by halves, as a quickselect.
  masses_.assign(kBuckets, 0);
  for (size_t index = 0; index < num_heads; ++index) {
    masses_[bucket_of(heads_[index].weight)] += heads_[index].weight;
  }
  size_t bucket = bucket_of(1);
  const size_t last_bucket = bucket_of(cutoff);
  while (bucket < last_bucket && masses_[bucket] < needed) needed -= masses_[bucket++];
  if (masses_[bucket] < needed) needed = masses_[bucket];  // rounding has led past the last one
  while (masses_[bucket] == 0) needed = masses_[--bucket];
  num_heads = keep_if(std::span(heads_).first(num_heads), heads_.data(),
                      [bucket](const Candidate& one) { return bucket_of(one.weight) == bucket; });
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  };
  auto begin = heads_.begin();
  auto end = begin + static_cast<std::ptrdiff_t>(num_heads);
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, better);
    double sum = 0;
    for (auto one = begin; one != middle; ++one) sum += one->weight;
    if (sum >= needed) {
      end = middle;
    } else {
      needed -= sum;
      begin = middle;
    }
  }
  candidates_.resize(
      keep_if(candidates_, candidates_.data(), [last = *begin](const Candidate& one) {
        return (one.weight > last.weight) | ((one.weight == last.weight) & (one.id <= last.id));
      }));
}

void Sampler::keep(const DrawSpec& spec) {
  const std::span<const double> scores(
      scores_.data(), std::min(scores_.size(), static_cast<size_t>(logical_vocab_size_)));
  const double best = highest(scores);
  if (!std::isfinite(best)) refuse_logits("no token of a position has a finite logit");
  candidates_.clear();
  if (spec.temperature() == 0) {
    const auto id = std::find(scores.begin(), scores.end(), best) - scores.begin();
    candidates_.push_back({1, static_cast<int32_t>(id)});
    return;
  }
  double least = kNone;
  if (spec.top_k() > 0 && static_cast<size_t>(spec.top_k()) < scores.size()) {
    least = kth_best(scores, static_cast<size_t>(spec.top_k()), best_);
  }
  for (size_t id = 0; id < scores.size(); ++id) {
    if (scores[id] < least) continue;
    const double weight = std::exp((scores[id] - best) / spec.temperature());
    candidates_.push_back({weight, static_cast<int32_t>(id)});
  }
  if (spec.top_p() < 1) keep_nucleus(spec.top_p());
  if (spec.min_p() > 0) {
    candidates_.resize(keep_if(candidates_, candidates_.data(), [&spec](const Candidate& one) {
      return one.weight >= spec.min_p();
    }));
  }
}

void Sampler::report(std::span<const float> logits, int32_t count, SampledToken& result) {
  const double best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - best);
  const double log_sum = best + std::log(sum);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(logits[static_cast<size_t>(id)] - log_sum);
  };
  result.set_logprob(logprob(result.token()));
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  const size_t most = std::min(static_cast<size_t>(count), logits.size());
  sort_best(logits, order_, most);
  for (size_t index = 0; index < most; ++index) {
    TokenLogprob& entry = *result.add_logprobs();
    entry.set_id(order_[index]);
    entry.set_logprob(logprob(order_[index]));
  }
}

std::span<const Sampler::Candidate> Sampler::candidates(std::span<const float> logits,
                                                        const DrawSpec& spec,
                                                        std::span<const int32_t> history) {
  check_draw(spec, logits.size());
  load(logits);
  adjust(spec, history);
  keep(spec);
  return candidates_;
}

void Sampler::draw(std::span<const float> logits, const DrawSpec& spec, int32_t position,
                   std::span<const int32_t> history, SampledToken& result) {
  const std::span<const Candidate> left = candidates(logits, spec, history);
  const double target = uniform_draw(spec.seed(), position) * sum_of(left);
  double sum = 0;
  int32_t drawn = 0;
  // Rounding may leave the sum short of a draw near 1: then it is the last that could be drawn.
  for (const Candidate& one : left) {
    if (one.weight > 0) drawn = one.id;
    sum += one.weight;
    if (sum > target) break;
  }
  result.set_token(drawn);
  if (spec.logprobs() > 0) report(logits, spec.logprobs(), result);
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// What fits where a placement did not: found by placing it.
#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/base/error.h"
#include "topology/memory.h"

namespace trireme {
namespace {

constexpr int kMostMoreRanks = 64;
// A plan for thousands of devices takes a second: then fewer things are tried.
constexpr int kManyRanks = 256;

class Search {
 public:
  Search(const Topology& topology, const ModelSpec& model, const PlacementOptions& options,
         const Place& place)
      : topology_(topology), model_(model), options_(options), place_(place) {}

  std::string run() {
    const std::string fewer = with_less(options_);
    if (!fewer.empty()) return fewer;
    // Nothing alone is enough: the least of each, then as much context as that leaves.
    PlacementOptions least = options_;
    least.max_sequences = 1;
    least.max_batch_tokens = std::min(options_.max_batch_tokens, 64);
    const std::string flags =
        " with --max_sequences 1 --max_batch_tokens " + std::to_string(least.max_batch_tokens);
    for (const bool narrow : {false, true}) {
      if (narrow && options_.dtype != DType::kF32) break;
      if (narrow) least.dtype = DType::kBF16;
      if (narrow) least.weight_dtypes.reset();
      if (const auto context = most_context(least)) {
        return flags + " --context " + std::to_string(*context) + (narrow ? " --dtype bf16" : "");
      }
    }
    return more_ranks();
  }

 private:
  std::optional<Placement> placed(const PlacementOptions& options, const Topology& topology) const {
    try {
      PlacementOptions quick = options;
      quick.cpu_seconds = std::min(options.cpu_seconds, 0.1);
      return place_(topology, quick);
    } catch (const Error&) {
      return std::nullopt;
    }
  }
  bool fits(const PlacementOptions& options) const {
    return placed(options, topology_).has_value();
  }

  // The largest value of a field below what it is, by halving: within a 64th of the best.
  template <typename Set>
  std::optional<int32_t> most(int32_t least, int32_t limit, const PlacementOptions& options,
                              Set set) const {
    const auto with = [&](int32_t value) {
      PlacementOptions changed = options;
      set(changed, value);
      return fits(changed);
    };
    if (limit <= least || !with(least)) return std::nullopt;
    int32_t below = least;
    int32_t above = limit;
    while (above - below > std::max(1, below / 64)) {
      const int32_t middle = below + (above - below) / 2;
      (with(middle) ? below : above) = middle;
    }
    return below;
  }

  std::optional<int32_t> most_context(const PlacementOptions& options) const {
    const int32_t limit = options.context.value_or(model_.context_length()) + 1;
    const int32_t unit = options.block_size;
    const auto blocks =
        most(1, (limit + unit - 1) / unit, options,
             [&](PlacementOptions& changed, int32_t count) { changed.context = count * unit; });
    return blocks ? std::optional(*blocks * unit) : std::nullopt;
  }

  // One thing changed at a time.
  std::string with_less(const PlacementOptions& options) const {
    std::vector<std::string> found;
    if (const auto context = most_context(options)) {
      found.push_back("--context " + std::to_string(*context));
    }
    if (topology_.ranks_size() <= kManyRanks) {
      const auto sequences =
          most(1, options.max_sequences, options,
               [](PlacementOptions& changed, int32_t value) { changed.max_sequences = value; });
      if (sequences) found.push_back("--max_sequences " + std::to_string(*sequences));
      const auto tokens =
          most(std::min(16, options.max_batch_tokens), options.max_batch_tokens, options,
               [](PlacementOptions& changed, int32_t value) { changed.max_batch_tokens = value; });
      if (tokens) found.push_back("--max_batch_tokens " + std::to_string(*tokens));
    }
    PlacementOptions narrow = options;
    narrow.dtype = DType::kBF16;
    narrow.weight_dtypes.reset();
    if (options.dtype == DType::kF32 && fits(narrow)) found.push_back("--dtype bf16");
    PlacementOptions free = options;
    free.tp = free.pp = free.dp = std::nullopt;
    const bool fixed = options.tp || options.pp || options.dp;
    if (fixed) {
      if (const auto other = placed(free, topology_)) found.push_back(degrees(*other));
    }
    std::string text;
    for (size_t i = 0; i < found.size(); ++i) text += (i == 0 ? " with " : ", or ") + found[i];
    return text;
  }

  static std::string degrees(const Placement& placement) {
    const ReplicaSpec& replica = placement.replicas(0);
    int widest = 1;
    bool even = true;
    for (const StageSpec& stage : replica.stages()) {
      even = even && stage.shards_size() == replica.stages(0).shards_size();
      widest = std::max(widest, stage.shards_size());
    }
    if (!even) return "no --tp, --pp and --dp";
    return "--tp " + std::to_string(widest) + " --pp " + std::to_string(replica.stages_size()) +
           " --dp " + std::to_string(placement.replicas_size());
  }

  std::string more_ranks() const {
    if (topology_.ranks().empty()) return "";
    PlacementOptions free = options_;
    free.tp = free.pp = free.dp = std::nullopt;
    Topology larger = topology_;
    for (int more = 1; more <= kMostMoreRanks; ++more) {
      RankInfo rank = topology_.ranks(topology_.ranks_size() - 1);
      rank.set_rank(rank.rank() + more);
      *larger.add_ranks() = rank;
      if ((more & (more - 1)) != 0 && more > 8) continue;  // each up to 8, then powers of two
      if (placed(free, larger)) {
        return " with " + std::to_string(more) + " more rank" + (more > 1 ? "s" : "") +
               " of as much memory as the last has (mpirun -n " +
               std::to_string(larger.ranks_size() + 1) + ")";
      }
    }
    return "";
  }

  const Topology& topology_;
  const ModelSpec& model_;
  const PlacementOptions& options_;
  const Place& place_;
};

}  // namespace

std::string nearest_fit(const Topology& topology, const ModelSpec& model,
                        const PlacementOptions& options, const Place& place) {
  const std::string found = Search(topology, model, options, place).run();
  return found.empty() ? "" : "; it fits" + found;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "launch/explain.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <vector>

#include "launch/picture_parts.h"
#include "launch/placement_table.h"
#include "launch/text_table.h"
#include "topology/link_graph.h"
#include "topology/memory.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr size_t kManyRanks = 48;  // beyond, replicas that are alike are shown once

std::string gib(uint64_t bytes) {
  char text[32];
  const double value = static_cast<double>(bytes) / double(uint64_t{1} << 30);
  std::snprintf(text, sizeof text, value < 10 ? "%.3f" : "%.1f", value);
  return text;
}

std::string milliseconds(double ms) { return ms > 0 ? short_number(ms) : "-"; }
std::string percent(double share) { return short_number(100 * share) + " %"; }

class Explanation {
 public:
  Explanation(const Topology& topology, const ModelSpec& model, const Placement& placement)
      : topology_(topology), model_(model), placement_(placement), links_(topology) {
    for (int worker = 0; worker < topology.ranks_size(); ++worker) {
      workers_[topology.ranks(worker).rank()] = worker;
    }
  }

  std::string text() {
    std::string text = title() + table() + predictions();
    std::string reasons;
    for (const std::string& reason : placement_.predicted().reasons()) {
      reasons += "  - " + reason + "\n";
    }
    std::vector<std::string> own = {tightest(), cache(), tensor_parallelism(), left_out()};
    // The planner has said these of its own.
    if (placement_.predicted().reasons().empty()) own.insert(own.end(), {pace(), degraded()});
    for (const std::string& reason : own) {
      if (!reason.empty()) reasons += "  - " + reason + "\n";
    }
    return text + "Why:\n" + reasons;
  }

 private:
  const RankInfo& rank_of(const ShardSpec& shard) const {
    return topology_.ranks(workers_.at(shard.rank()));
  }
  std::string who(const ShardSpec& shard) const {
    const RankInfo& rank = rank_of(shard);
    return "rank " + std::to_string(shard.rank()) + " (" + device_text(rank.device()) + " of " +
           rank.host() + ")";
  }

  template <typename Visit>
  void for_each_stage(Visit visit) const {
    for (int replica = 0; replica < placement_.replicas_size(); ++replica) {
      const auto& stages = placement_.replicas(replica).stages();
      for (int stage = 0; stage < stages.size(); ++stage) visit(replica, stage, stages[stage]);
    }
  }

  std::string title() const {
    return model_.name() + ": " + std::to_string(model_.num_layers()) + " layers, " +
           dtype_summary(placement_) + ", context " + std::to_string(placement_.context()) + ", " +
           std::to_string(placement_.max_sequences()) + " sequences, " +
           std::to_string(placement_.num_blocks()) + " KV blocks of " +
           std::to_string(placement_.block_size()) + ". Memory in GiB\n";
  }

  // Layers, degrees and kinds of device of a replica.
  std::string shape(int replica) const {
    std::string text;
    for (const StageSpec& stage : placement_.replicas(replica).stages()) {
      text += layers_text(stage) + "/" + std::to_string(stage.shards_size()) +
              device_text(rank_of(stage.shards(0)).device()) + ";";
    }
    return text;
  }

  std::string table() const {
    std::vector<TextRow> rows = {{"replica", "stage", "rank", "node", "device", "layers", "TP",
                                  "weights", "KV", "activations", "messages", "used", "there",
                                  "decode ms", "prefill ms", "hop ms", "idle"}};
    size_t ranks = 0;
    for_each_stage([&](int, int, const StageSpec& stage) {
      ranks += static_cast<size_t>(stage.shards_size());
    });
    std::map<std::string, std::vector<int>> alike;
    for (int replica = 0; replica < placement_.replicas_size(); ++replica) {
      alike[shape(replica)].push_back(replica);
    }
    for_each_stage([&](int replica, int index, const StageSpec& stage) {
      std::string name = std::to_string(replica);
      if (ranks > kManyRanks) {
        const std::vector<int>& same = alike[shape(replica)];
        if (same.front() != replica) return;
        if (same.size() > 1) name += " x" + std::to_string(same.size());
      }
      for (const ShardSpec& shard : stage.shards()) rows.push_back(row(name, index, stage, shard));
    });
    return draw_table(rows);
  }

  TextRow row(const std::string& replica, int index, const StageSpec& stage,
              const ShardSpec& shard) const {
    const RankInfo& rank = rank_of(shard);
    const StagePrediction& predicted = stage.predicted();
    const bool timed = predicted.decode_ms() > 0;
    return {replica,
            std::to_string(index),
            std::to_string(shard.rank()),
            rank.host(),
            device_text(rank.device()),
            stage_content(stage),
            std::to_string(shard.tp_rank() + 1) + "/" + std::to_string(stage.shards_size()),
            gib(shard.weight_bytes()),
            gib(shard.kv_bytes()),
            gib(shard.activation_bytes()),
            gib(shard.communication_bytes()),
            gib(predicted_bytes(shard)),
            gib(rank.device().memory_bytes()),
            milliseconds(predicted.decode_ms()),
            milliseconds(predicted.prefill_ms()),
            milliseconds(predicted.hop_ms()),
            timed ? percent(predicted.idle_share()) : "-"};
  }

  std::string predictions() const {
    const PlacementPrediction& p = placement_.predicted();
    if (p.objective() == OBJECTIVE_UNSPECIFIED) return "";
    const auto limit = [](double ms) {
      return ms > 0 ? " (limit " + short_number(ms) + ")" : std::string();
    };
    double bubble = 0;
    for (const ReplicaSpec& replica : placement_.replicas()) {
      bubble = std::max(bubble, replica.predicted().bubble_share());
    }
    const bool latency = p.objective() == OBJECTIVE_LATENCY;
    const std::string unit = latency ? " ms per token" : " requests/s";
    std::string text = "Predicted for prompts of " + std::to_string(p.prompt_tokens()) +
                       " and answers of " + std::to_string(p.output_tokens()) +
                       " tokens: " + short_number(p.tokens_per_s()) + " tokens/s, " +
                       short_number(p.requests_per_s()) + " requests/s; TPOT " +
                       short_number(p.tpot_ms()) + " ms" + limit(p.tpot_limit_ms()) + ", TTFT " +
                       short_number(p.ttft_ms()) + " ms" + limit(p.ttft_limit_ms()) + ", bubble " +
                       percent(bubble) + "\n";
    if (p.bound() <= 0) return text + "No bound is known: the placement is " + p.method() + "\n";
    text += std::string("Goal: ") + (latency ? "latency" : "throughput") + ", " +
            short_number(p.value()) + unit + "; no placement is better than " +
            short_number(p.bound()) + ": gap " + percent(p.gap()) + " (" + p.method() + ")\n";
    const RunnerUp& other = p.runner_up();
    if (!other.shape().empty()) {
      text += "Runner-up: " + other.shape() + ", " + short_number(other.value()) + unit + ": " +
              other.reason() + "\n";
    } else if (!other.reason().empty()) {
      text += "Runner-up: " + other.reason() + "\n";
    }
    return text;
  }

  // ---- reasons that follow from the placement alone ----

  std::string pace() const {
    const StageSpec* slowest = nullptr;
    std::string where;
    double most_idle = 0;
    for_each_stage([&](int replica, int index, const StageSpec& stage) {
      if (placement_.replicas(replica).stages_size() < 2) return;
      most_idle = std::max(most_idle, stage.predicted().idle_share());
      if (slowest != nullptr && slowest->predicted().decode_ms() >= stage.predicted().decode_ms()) {
        return;
      }
      slowest = &stage;
      where = "stage " + std::to_string(index) + " of replica " + std::to_string(replica);
    });
    if (slowest == nullptr || slowest->predicted().decode_ms() <= 0) return "";
    return where + " sets the pace: a decode step takes " +
           short_number(slowest->predicted().decode_ms()) + " ms there, of which the head " +
           short_number(slowest->predicted().head_ms()) + " and all-reduces " +
           short_number(slowest->predicted().all_reduce_ms()) + "; others wait up to " +
           percent(most_idle) + " of the time";
  }

  std::string tightest() const {
    const ShardSpec* found = nullptr;
    double most = 0;
    for_each_stage([&](int, int, const StageSpec& stage) {
      for (const ShardSpec& shard : stage.shards()) {
        const double share = static_cast<double>(predicted_bytes(shard)) /
                             std::max<double>(1, double(rank_of(shard).device().memory_bytes()));
        if (share <= most) continue;
        most = share;
        found = &shard;
      }
    });
    if (found == nullptr) return "";
    return "memory is tightest on " + who(*found) + ": " + gib(predicted_bytes(*found)) + " of " +
           gib(rank_of(*found).device().memory_bytes()) + " GiB (" + percent(most) + "), weights " +
           gib(found->weight_bytes()) + " and KV " + gib(found->kv_bytes());
  }

  std::string cache() const {
    const int64_t positions = int64_t{placement_.num_blocks()} * placement_.block_size();
    const int64_t whole = positions / std::max(1, placement_.context());
    std::string text =
        "the KV cache of a replica holds " + std::to_string(positions) +
        " positions: " + std::to_string(std::min<int64_t>(whole, placement_.max_sequences())) +
        " of its " + std::to_string(placement_.max_sequences()) +
        " sequences at the full context of " + std::to_string(placement_.context());
    if (whole >= placement_.max_sequences()) return text;
    return text + ", or all of them at " +
           std::to_string(positions / std::max(1, placement_.max_sequences())) +
           "; beyond that the youngest wait";
  }

  // What the two all-reduces of a layer would cost over the network, where there is one.
  std::string tensor_parallelism() const {
    const StageSpec* widest = nullptr;
    double sequences = placement_.max_sequences();
    for_each_stage([&](int replica, int, const StageSpec& stage) {
      if (widest != nullptr && widest->shards_size() >= stage.shards_size()) return;
      widest = &stage;
      const int32_t own = placement_.replicas(replica).sequences_per_micro_batch();
      if (own > 0) sequences = own;
    });
    const LinkSpeed* slowest = nullptr;
    for (const LinkSpeed* speed : links_.all()) {
      if (speed->link_class() != LINK_CLASS_NET || speed->bandwidth_bytes_per_s() <= 0) continue;
      if (slowest == nullptr || speed->bandwidth_bytes_per_s() < slowest->bandwidth_bytes_per_s()) {
        slowest = speed;
      }
    }
    std::set<std::string> hosts;
    for (const RankInfo& rank : topology_.ranks()) hosts.insert(rank.host());
    if (widest == nullptr || slowest == nullptr || hosts.size() < 2) return "";
    std::set<std::string> group_hosts;
    for (const ShardSpec& shard : widest->shards()) group_hosts.insert(rank_of(shard).host());
    if (group_hosts.size() > 1) return "";
    const double bytes = sequences * model_.hidden_size() * 2;
    const double ms = 2e3 * (2 * slowest->latency_s() + bytes / slowest->bandwidth_bytes_per_s());
    const std::string cost = "between two nodes (" + link_text(*slowest) +
                             ") the two all-reduces of a layer would cost " + short_number(ms) +
                             " ms for " + short_number(sequences) + " sequences";
    if (widest->shards_size() == 1) return "no tensor parallelism across nodes: " + cost;
    const int layers = std::max(1, length(widest->layers()));
    return "TP stays inside " + *group_hosts.begin() + ": " + cost +
           ", inside the node they cost " +
           short_number(widest->predicted().all_reduce_ms() / layers) + " ms";
  }

  std::string left_out() const {
    if (placement_.spare_ranks().empty()) return "";
    std::string ranks;
    int shown = 0;
    for (const int32_t rank : placement_.spare_ranks()) {
      if (++shown > 8) break;
      const auto worker = workers_.find(rank);
      ranks += (shown > 1 ? ", " : "") + std::to_string(rank);
      if (worker != workers_.end()) {
        ranks += " (" + device_text(topology_.ranks(worker->second).device()) + ")";
      }
    }
    if (shown > 8) {
      ranks += " and " + std::to_string(placement_.spare_ranks_size() - 8) + " more";
    }
    return "spare: rank " + ranks;
  }

  std::string degraded() const {
    std::string text;
    for (const RankInfo& rank : topology_.ranks()) {
      if (!rank.device().degraded()) continue;
      text += (text.empty() ? "" : "; ") + std::string("rank ") + std::to_string(rank.rank()) +
              " is degraded: " + rank.device().degraded_reason();
    }
    return text;
  }

  const Topology& topology_;
  const ModelSpec& model_;
  const Placement& placement_;
  const LinkGraph links_;
  std::map<int32_t, int> workers_;
};

}  // namespace

std::string explain_placement(const Topology& topology, const ModelSpec& model,
                              const Placement& placement) {
  return Explanation(topology, model, placement).text();
}

}  // namespace trireme

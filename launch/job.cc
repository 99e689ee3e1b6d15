// SPDX-License-Identifier: Apache-2.0
#include "launch/job.h"

#include <algorithm>
#include <set>
#include <thread>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/log.h"
#include "kernels/base/printable.h"
#include "launch/group_keys.h"
#include "launch/kv_agreement.h"
#include "launch/loading.h"
#include "launch/workers.h"
#include "topology/device_map.h"
#include "topology/nccl_settings.h"
#include "topology/placement.h"
#include "topology/topology.h"
#include "topology/worker_names.h"
#include "worker/model/checkpoint.h"
#include "worker/model/dtype_map.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

constexpr std::chrono::milliseconds kPollInterval{2};
constexpr std::chrono::milliseconds kTellInterval{500};

// A placement says all of these itself, and what it says may differ; other maps say the stages.
void refuse_beside_a_map(const PlacementFlags& flags, bool is_placement) {
  const std::pair<const char*, bool> given[] = {
      {"--tp", flags.tp.has_value()},
      {"--pp", flags.pp.has_value()},
      {"--dp", flags.dp.has_value()},
      {"--dtype", is_placement && !flags.dtype.empty()},
      {"--context", is_placement && flags.context.has_value()},
      {"--max_memory", is_placement && !flags.max_memory_bytes.empty()}};
  for (const auto& [name, present] : given) {
    if (!present) continue;
    throw Error(Code::kInvalidArgument, "cannot use " + std::string(name) + " with --device_map " +
                                            flags.device_map + ": the map says it");
  }
}

}  // namespace

Placement choose_placement(const PlacementFlags& flags, const Topology& topology,
                           const ModelSpec& model) {
  const bool automatic = flags.device_map == "auto";
  const bool is_placement = !automatic && is_placement_file(flags.device_map);
  if (!automatic) refuse_beside_a_map(flags, is_placement);
  PlacementOptions options;
  if (!is_placement) {
    set_dtypes(flags.dtype.empty() ? model.checkpoint_dtype() : flags.dtype, model, options);
  }
  options.tp = flags.tp;
  options.pp = flags.pp;
  options.dp = flags.dp;
  options.max_sequences = flags.max_sequences;
  options.max_batch_tokens = flags.max_batch_tokens;
  options.context = flags.context;
  options.max_memory_bytes = flags.max_memory_bytes;
  const auto seconds = [](const std::optional<std::chrono::milliseconds>& limit) {
    return limit ? std::optional(std::chrono::duration<double>(*limit).count()) : std::nullopt;
  };
  options.objective = flags.objective == "latency" ? OBJECTIVE_LATENCY : OBJECTIVE_THROUGHPUT;
  options.tpot_limit_s = seconds(flags.tpot_max);
  options.ttft_limit_s = seconds(flags.ttft_max);
  options.assumptions = assumptions_of(topology);
  return place_model(flags.device_map, topology, model, options);
}

struct Job::State {
  PlacementFlags flags;
  int32_t max_queue = 256;
  std::unique_ptr<Workers> workers;
  ModelSpec model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatFormat> chat_format;
  Placement placement;
  std::unique_ptr<Engine> engine;  // before workers in destruction: it uses their channel

  void assign(const Loading& loading);
  void relay(int from, const GroupKey& key);
  void choose_nccl_ways(const std::set<int>& by_nccl);
  void settle_blocks(const KvAgreement::Decision& decision);

  std::map<int, NcclSettings> nccl_ways;  // by rank, of those that use it
};

namespace {

std::set<int> company_of(const ReplicaSpec& replica) {
  const std::vector<int> ranks = ranks_of(replica);
  return {ranks.begin(), ranks.end()};
}

// Ranks of the placement that can exchange tensors by NCCL: on GPUs, with the library of the first
// of them.
std::set<int> nccl_ranks(const Topology& topology, const Placement& placement) {
  std::set<int> placed;
  for (const ReplicaSpec& replica : placement.replicas()) placed.merge(company_of(replica));
  std::set<int> able;
  int version = 0;
  for (const RankInfo& rank : topology.ranks()) {
    if (!has_nccl(rank) || !placed.contains(rank.rank())) continue;
    if (version == 0) version = rank.nccl_version();
    if (rank.nccl_version() == version) {
      able.insert(rank.rank());
    } else {
      log_warn("rank " + std::to_string(rank.rank()) + " on " + printable(rank.host()) +
               " exchanges tensors through host memory: its NCCL is " +
               std::to_string(rank.nccl_version()) + ", the first rank's is " +
               std::to_string(version));
    }
  }
  return able;
}

PeerSumChoice peer_sum_choice(const std::string& flag) {
  if (flag == "always") return PEER_SUM_CHOICE_ALWAYS;
  return flag == "never" ? PEER_SUM_CHOICE_NEVER : PEER_SUM_CHOICE_AUTO;
}

}  // namespace

Job::Job(const Options& options) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.flags = options.placement;
  s.max_queue = options.serve.max_queue;
  // It travels in messages, whose texts are UTF-8.
  if (find_broken_utf8(s.flags.model).has_value()) {
    throw Error(Code::kInvalidArgument, "cannot read the model " + s.flags.model +
                                            ": its name is not UTF-8; rename it, or link to it");
  }
  s.workers = form_workers(options);
  s.model = read_model_spec(s.flags.model);
  s.tokenizer = load_tokenizer(s.flags.model, s.model.family());
  if (s.tokenizer->size() > s.model.vocab_size()) {
    throw Error(Code::kInvalidArgument,
                "cannot serve " + s.model.name() + ": its tokenizer has " +
                    std::to_string(s.tokenizer->size()) + " tokens, its embedding only " +
                    std::to_string(s.model.vocab_size()) +
                    " rows; tokenizer and weights are not of the same model");
  }
  s.chat_format = make_chat_format(s.flags.model, s.model.family(), s.model.bos_id(), *s.tokenizer);
  s.placement = choose_placement(s.flags, s.workers->topology(), s.model);
  EngineOptions engine;
  engine.max_queue = s.max_queue;
  engine.drift = std::make_shared<StepDrift>(s.workers->topology(), s.model, s.placement);
  s.engine =
      std::make_unique<Engine>(s.workers->topology(), s.placement, s.workers->channel(), engine);
}

Job::~Job() {
  if (state_->engine) state_->engine->stop("the service is ending");
}

// Groups are of ranks of one replica.
void Job::State::choose_nccl_ways(const std::set<int>& by_nccl) {
  const Topology& topology = workers->topology();
  for (const ReplicaSpec& replica : placement.replicas()) {
    std::set<int> company = company_of(replica);
    std::erase_if(company, [&](int rank) { return !by_nccl.contains(rank); });
    if (company.size() < 2) continue;
    for (const int rank : company) {
      const auto measured = workers->nccl_ways().find(rank);
      if (measured != workers->nccl_ways().end()) {
        nccl_ways[rank] = measured->second;
        continue;
      }
      const RankInfo& info = topology.ranks(worker_of(topology, rank));
      nccl_ways[rank] = choose_nccl_settings(topology, company, rank, info.nccl_variables());
    }
  }
  for (const std::string& line : describe_nccl_settings(topology, nccl_ways)) log_info(line);
}

// All its ranks allocate as many.
void Job::State::settle_blocks(const KvAgreement::Decision& decision) {
  if (!decision.why.empty()) {
    log_warn(decision.why);
    lower_num_blocks(placement, decision.replica, decision.num_blocks);
    engine->set_num_blocks(decision.replica, decision.num_blocks);
  }
  ToWorker message;
  message.mutable_kv_blocks()->set_num_blocks(decision.num_blocks);
  for (const int rank : decision.ranks) workers->channel().send(rank, message);
}

// To ranks of the same replica only; whoever asks for more is not one of ours.
void Job::State::relay(int from, const GroupKey& key) {
  for (const ReplicaSpec& replica : placement.replicas()) {
    const std::set<int> company = company_of(replica);
    if (company.contains(from)) return relay_key(workers->channel(), from, key, company);
  }
  relay_key(workers->channel(), from, key, {});
}

void Job::State::assign(const Loading& loading) {
  const std::set<int> by_nccl = nccl_ranks(workers->topology(), placement);
  choose_nccl_ways(by_nccl);
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    const auto& stages = placement.replicas(replica).stages();
    for (int stage = 0; stage < stages.size(); ++stage) {
      for (const ShardSpec& shard : stages[stage].shards()) {
        ToWorker message;
        Assign& assign = *message.mutable_assign();
        *assign.mutable_model() = model;
        *assign.mutable_placement() = placement;
        assign.set_replica(replica);
        assign.set_stage(stage);
        assign.set_tp_rank(shard.tp_rank());
        assign.set_logical_vocab_size(tokenizer->size());
        assign.set_isa(flags.isa);
        assign.set_deterministic(flags.deterministic);
        assign.set_enforce_eager(flags.enforce_eager);
        assign.set_peer_sums(peer_sum_choice(flags.peer_sums));
        for (const RankInfo& rank : workers->topology().ranks()) {
          if (rank.rank() != shard.rank()) continue;
          assign.set_threads(rank.device().threads());
          assign.set_device_index(rank.device().index());
        }
        for (const int rank : loading.node_of(shard.rank())) assign.add_node_ranks(rank);
        for (const int rank : by_nccl) assign.add_nccl_ranks(rank);
        *assign.mutable_nccl_settings() = variables_of(nccl_ways[shard.rank()]);
        // Threads that find all of it set do not change what others read.
        if (workers->in_one_process()) set_nccl_variables(assign.nccl_settings());
        assign.set_verify_checkpoint(flags.verify_checkpoint);
        workers->channel().send(shard.rank(), message);
      }
    }
  }
}

void Job::load(const std::function<bool()>& stop_requested, std::function<void()> on_health) {
  State& s = *state_;
  Loading loading(s.workers->topology(), s.placement, s.flags.verify_checkpoint, s.engine->roster(),
                  s.flags.start_timeout);
  s.assign(loading);
  const Placement planned = s.placement;
  KvAgreement agreement(s.workers->topology(), planned);
  Clock::time_point told;
  while (!loading.done()) {
    // Clients that watch see the load go on.
    if (const auto now = Clock::now(); now - told >= kTellInterval) {
      told = now;
      s.engine->roster().states_changed(now);  // says it in the log
      if (on_health) on_health();
    }
    if (stop_requested()) throw Error(Code::kCancelled, "stopped by a signal while loading");
    const auto event = s.workers->channel().poll();
    if (event) {
      loading.handle(*event);
      if (event->message.has_group_key()) s.relay(event->rank, event->message.group_key());
      if (event->message.has_kv_room()) {
        const auto decision = agreement.take(event->rank, event->message.kv_room());
        if (decision) s.settle_blocks(*decision);
      }
    } else {
      std::this_thread::sleep_for(kPollInterval);
    }
    loading.tick();
  }
  loading.finish();
  s.engine->set_health_listener(std::move(on_health));
  s.engine->start();
}

const ModelSpec& Job::model() const { return state_->model; }
const Topology& Job::topology() const { return state_->workers->topology(); }
const Placement& Job::placement() const { return state_->placement; }
ServedModel Job::served_model() const {
  return {state_->model, *state_->tokenizer, *state_->chat_format, state_->engine->longest()};
}
Engine& Job::engine() { return *state_->engine; }

}  // namespace trireme

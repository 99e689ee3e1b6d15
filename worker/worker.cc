// SPDX-License-Identifier: Apache-2.0
#include "worker/worker.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include "kernels/base/log.h"
#include "topology/gpu_users.h"
#include "topology/nccl_settings.h"
#include "topology/placement.h"
#include "worker/comm/nccl_ras.h"
#include "worker/measure_speeds.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

PeerSums peer_sums_of(PeerSumChoice choice) {
  switch (choice) {
    case PEER_SUM_CHOICE_AUTO: return PeerSums::kAuto;
    case PEER_SUM_CHOICE_ALWAYS: return PeerSums::kAlways;
    case PEER_SUM_CHOICE_NEVER: return PeerSums::kNever;
    default: break;
  }
  throw Error(Code::kInvalidArgument, "cannot take the assignment: peer_sums is " +
                                          std::to_string(static_cast<int>(choice)) +
                                          ", which this build does not know");
}

bool has_gpu(const ReplicaSpec& replica) {
  for (const StageSpec& stage : replica.stages()) {
    for (const ShardSpec& shard : stage.shards()) {
      if (shard.device() == DEVICE_KIND_CUDA) return true;
    }
  }
  return false;
}

std::string other_users_of_gpu(const RankInfo& info, int index) {
  for (const DeviceInfo& gpu : info.gpus()) {
    if (gpu.index() == index) return describe_gpu_users(gpu.pci_id(), info.pid());
  }
  return "";
}

// Tells `report` what `work` threw; true: nothing.
template <class Work, class Report>
bool catch_all(Work&& work, Report&& report) {
  try {
    work();
    return true;
  } catch (const Error& error) {
    report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    report(Code::kResourceExhausted, "out of memory");
  } catch (const std::exception& error) {
    report(Code::kInternal, std::string("unforeseen: ") + error.what());
  }
  return false;
}

}  // namespace

Worker::Worker(const Hello& hello, const std::string& model_path, WorkerChannel& channel,
               Transport& transport)
    : hello_(hello),
      model_path_(model_path),
      channel_(channel),
      transport_(transport),
      links_(transport, channel.cancellation(), hello.info().rank()) {}

int Worker::run() {
  channel_.progress()->bind_thread();
  const auto serve = [&] {
    FromWorker hello;
    *hello.mutable_hello() = hello_;
    channel_.send(hello);
    for (;;) {
      std::optional<ToWorker> message;
      if (later_.empty()) {
        message = channel_.receive(std::chrono::milliseconds(1000));
      } else {
        message = std::move(later_.front());
        later_.pop_front();
      }
      if (message && !handle(*message)) return;
    }
  };
  const bool ended =
      catch_all(serve, [&](Code code, const std::string& what) { report_failure(code, what); });
  return ended ? 0 : 1;
}

// A load that fails is for the coordinator to judge. If this rank ended, the launcher would take
// its status for the job's.
void Worker::load_or_report(const Assign& assign) {
  catch_all([&] { load(assign); },
            [&](Code code, const std::string& what) {
              stage_.reset();  // it may be half a stage
              // Abandoned by the coordinator, which knows why.
              if (code != Code::kCancelled) report_failure(code, what);
            });
}

bool Worker::handle(const ToWorker& message) {
  switch (message.kind_case()) {
    case ToWorker::kAssign: load_or_report(message.assign()); return true;
    case ToWorker::kLinks: {
      FromWorker reply;
      *reply.mutable_links() = links_.run(message.links());
      channel_.send(reply);
      return true;
    }
    case ToWorker::kSpeeds: {
      FromWorker reply;
      set_nccl_variables(message.speeds().nccl_settings());
      const auto make_tensors = [&](Backend& device) {
        const auto& by_nccl = message.speeds().nccl_ranks();
        return make_device_transport(transport_, device,
                                     transport_options({by_nccl.begin(), by_nccl.end()}));
      };
      *reply.mutable_speeds() = measure_speeds(message.speeds(), hello_.info().rank(), transport_,
                                               make_tensors, channel_.cancellation());
      channel_.send(reply);
      return true;
    }
    case ToWorker::kMicroBatch:
      // A batch that was under way when its replica ended: its Abandon is in the queue behind it.
      if (!stage_ || channel_.cancellation().cancelled()) return true;
      try {
        channel_.progress()->begin_batch(message.micro_batch().id());
        const MicroBatchResult result = stage_->run(message.micro_batch());
        channel_.progress()->end_batch();
        if (stage_->reporter()) {
          FromWorker reply;
          *reply.mutable_result() = result;
          channel_.send(reply);
        }
      } catch (const Error& error) {
        if (error.code() != Code::kCancelled && !abandoned_after(error)) throw;
      }
      return true;
    case ToWorker::kGroupKey:
      keys_[message.group_key().tag()] = message.group_key().key();
      return true;
    case ToWorker::kKvBlocks: return true;  // of a load that was given up
    case ToWorker::kAbandon:
      // The stage's groups hold a dead rank: the stage goes; a new assignment makes the next one.
      stage_.reset();
      keys_.clear();
      channel_.cancellation().reset();
      channel_.progress()->drop_batch();
      return true;
    case ToWorker::kShutdown: return false;
    case ToWorker::KIND_NOT_SET: break;
  }
  throw Error(Code::kInvalidArgument,
              "cannot understand the coordinator's message: its kind is not known to this build");
}

// NCCL may find that a peer has died before its Abandon comes.
bool Worker::abandoned_after(const Error& error) {
  constexpr std::chrono::milliseconds kSoon{500};  // a death is told within 50 ms
  if (error.code() != Code::kUnavailable) return false;
  const auto deadline = std::chrono::steady_clock::now() + kSoon;
  while (!channel_.cancellation().cancelled()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  log_warn("abandons its micro-batch: " + std::string(error.what()));
  return true;
}

DeviceTransportOptions Worker::transport_options(std::set<int> by_nccl) {
  DeviceTransportOptions options;
  options.rank = hello_.info().rank();
  options.nccl_ranks = std::move(by_nccl);
  options.keys = this;
  options.cancellation = &channel_.cancellation();
  options.progress = channel_.progress();
  options.nccl.ras = nccl_ras_address(hello_.info().nccl_variables());
  return options;
}

void Worker::load(const Assign& assign) {
  const auto start = std::chrono::steady_clock::now();
  check_assignment(assign);
  channel_.progress()->begin(OPERATION_LOAD);
  stage_.reset();
  set_nccl_variables(assign.nccl_settings());
  backend_ = make_backend_of(assign);
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(model_path_);
  DeviceTransportOptions options =
      transport_options({assign.nccl_ranks().begin(), assign.nccl_ranks().end()});
  options.gpu_ranks = gpu_ranks(assign.placement());
  options.peer_sums = peer_sums_of(assign.peer_sums());
  options.deterministic = assign.deterministic();
  const auto tensors = make_device_transport(transport_, *backend_, options);
  LoadProgress told;
  const auto tell = [&](const LoadProgress& progress) {
    channel_.cancellation().throw_if_cancelled();
    channel_.progress()->step();
    FromWorker message;
    *message.mutable_progress() = told = progress;
    channel_.send(message);
  };
  const auto enter = [&](LoadPhase phase) {
    if (backend_->in_host_memory()) return;  // these last on a GPU only
    told.set_phase(phase);
    tell(LoadProgress(told));
  };
  stage_.emplace(assign, *checkpoint, *backend_, transport_, *tensors, tell);
  enter(LOAD_PHASE_WARMING_UP);
  stage_->warm_up();
  enter(LOAD_PHASE_ALLOCATING);
  allocate_cache(assign);
  enter(LOAD_PHASE_RECORDING);
  stage_->record_steps();
  send_digests(stage_->take_digests());

  channel_.progress()->begin(OPERATION_IDLE);
  FromWorker message;
  Ready& ready = *message.mutable_ready();
  ready.set_weight_bytes(stage_->weight_bytes());
  ready.set_kv_bytes(stage_->kv_bytes());
  ready.set_activation_bytes(stage_->activation_bytes());
  ready.set_communication_bytes(stage_->communication_bytes());
  ready.set_bytes_read(checkpoint->bytes_read());
  ready.set_node_bytes(stage_->node_bytes());
  ready.set_load_s(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  channel_.send(message);
}

// What memory a GPU has left nobody knows before its largest steps have run; so the ranks of a
// replica with a GPU say what they have room for, and the coordinator how many blocks it is.
void Worker::allocate_cache(const Assign& assign) {
  const ReplicaSpec& replica = assign.placement().replicas(assign.replica());
  int32_t num_blocks = num_blocks_of(assign.placement(), assign.replica());
  if (has_gpu(replica)) {
    KvRoom room = stage_->kv_room();
    if (room.num_blocks() < num_blocks) {
      room.set_others(other_users_of_gpu(hello_.info(), assign.device_index()));
    }
    num_blocks = agree_on_blocks(room);
  }
  stage_->allocate_cache(num_blocks);
}

int32_t Worker::agree_on_blocks(const KvRoom& room) {
  FromWorker message;
  *message.mutable_kv_room() = room;
  channel_.send(message);
  channel_.progress()->begin(OPERATION_IDLE);  // others may load for minutes yet
  for (;;) {
    channel_.cancellation().throw_if_cancelled();
    const std::optional<ToWorker> answer = channel_.receive(std::chrono::milliseconds(50));
    if (!answer) continue;
    if (!answer->has_kv_blocks()) {
      later_.push_back(*answer);
      if (answer->has_shutdown()) throw Error(Code::kCancelled, "the job ends");
      continue;
    }
    const int32_t blocks = answer->kv_blocks().num_blocks();
    if (blocks < 1 || blocks > room.num_blocks()) {
      throw Error(Code::kInvalidArgument,
                  "cannot allocate the KV cache: the coordinator says " + std::to_string(blocks) +
                      " blocks, there is room for " + std::to_string(room.num_blocks()));
    }
    channel_.progress()->begin(OPERATION_LOAD);
    return blocks;
  }
}

void Worker::give(int tag, const std::string& key, std::span<const int> ranks) {
  FromWorker message;
  GroupKey& group = *message.mutable_group_key();
  group.set_tag(tag);
  group.set_key(key);
  for (const int rank : ranks) group.add_ranks(rank);
  channel_.send(message);
}

std::string Worker::take(int tag) {
  while (!keys_.contains(tag)) {
    channel_.cancellation().throw_if_cancelled();
    const std::optional<ToWorker> message = channel_.receive(std::chrono::milliseconds(50));
    if (!message) continue;
    if (message->has_group_key()) {
      keys_[message->group_key().tag()] = message->group_key().key();
    } else {
      const bool last = message->has_shutdown();
      later_.push_back(*message);
      if (last) throw Error(Code::kCancelled, "the service ends while it loads");
    }
  }
  return std::move(keys_.extract(tag).mapped());
}

// A message has room for all tensors of a large model, but not for what a hostile file may name.
void Worker::send_digests(const TensorDigests& digests) {
  constexpr int kAtOnce = 1024;
  for (int begin = 0; begin < digests.digests_size(); begin += kAtOnce) {
    FromWorker message;
    for (int i = begin; i < std::min(begin + kAtOnce, digests.digests_size()); ++i) {
      *message.mutable_digests()->add_digests() = digests.digests(i);
    }
    channel_.send(message);
  }
}

void Worker::report_failure(Code code, const std::string& what) {
  // Nothing here ends for want of a peer or of the coordinator unless that ended first.
  const bool follows = code == Code::kUnavailable || code == Code::kCancelled;
  if (follows) {
    log_warn("a consequence: " + what);
  } else {
    log_error(what);
  }
  FromWorker message;
  Failed& failed = *message.mutable_failed();
  failed.set_code(static_cast<int32_t>(code));
  failed.set_message(what);
  if (follows) {
    for (const int32_t peer : channel_.progress()->waiting_for()) failed.add_waiting_for(peer);
  }
  try {
    channel_.send(message);
  } catch (const Error&) {
    // The coordinator is gone: there is nobody to tell.
  }
}

}  // namespace trireme

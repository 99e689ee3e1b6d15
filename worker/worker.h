// SPDX-License-Identifier: Apache-2.0
// A rank's loop: message in, run, result out.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "proto/micro_batch.pb.h"
#include "worker/comm/channel.h"
#include "worker/comm/communicator.h"
#include "worker/comm/device_transport.h"
#include "worker/measure.h"
#include "worker/stage.h"

namespace trireme {

class Worker : private KeyExchange {
 public:
  // hello: what this rank says of itself; model_path: where its node has the model. The channel and
  // the transport must outlive the worker.
  Worker(const Hello& hello, const std::string& model_path, WorkerChannel& channel,
         Transport& transport);

  // Runs until Shutdown, the coordinator's end (kUnavailable) or a failure, which has then been
  // reported. Returns the process's exit status. A replica that lost a rank is left behind, not an
  // end.
  int run();

 private:
  // By way of the coordinator.
  void give(int tag, const std::string& key, std::span<const int> ranks) override;
  std::string take(int tag) override;

  // Handles one message; false after Shutdown.
  bool handle(const ToWorker& message);
  DeviceTransportOptions transport_options(std::set<int> by_nccl);
  void load(const Assign& assign);
  void load_or_report(const Assign& assign);
  // Whether the replica's Abandon follows a micro-batch's error soon.
  bool abandoned_after(const Error& error);
  void allocate_cache(const Assign& assign);
  int32_t agree_on_blocks(const KvRoom& room);
  void send_digests(const TensorDigests& digests);
  void report_failure(Code code, const std::string& what);

  const Hello hello_;
  const std::string model_path_;
  WorkerChannel& channel_;
  Transport& transport_;
  LinkProbe links_;
  std::map<int, std::string> keys_;  // that came, by tag
  std::deque<ToWorker> later_;       // messages that came while a key was waited for
  std::unique_ptr<Backend> backend_;
  std::optional<Stage> stage_;
};

}  // namespace trireme

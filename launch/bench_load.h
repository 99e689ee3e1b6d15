// SPDX-License-Identifier: Apache-2.0
// The load of a benchmark: what is sent when, and the client that sends it and looks at the clock.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launch/bench_report.h"
#include "launch/options.h"
#include "launch/stop_signal.h"
#include "proto/inference.grpc.pb.h"

namespace trireme {

// When each request is to begin, in seconds after the first: by --rate with gaps of a gamma
// distribution whose shape is --burstiness; all at once without.
std::vector<double> arrival_times(const BenchFlags& flags);

// Prompt `index`: --input_len draws from `words`. The same for the same --seed, whatever else is
// sent.
std::vector<int32_t> make_prompt(const std::vector<int32_t>& words, const BenchFlags& flags,
                                 int32_t index);

struct BenchProgress {
  int32_t ended = 0;
  int32_t under_way = 0;
  int64_t output_tokens = 0;
};

// Owned and used by one thread, on which all requests are driven: their times are those at which it
// sees their messages.
class BenchLoad {
 public:
  // flags and stop outlive it. tell: called often while it runs. Connects, and asks the server for
  // words; throws Error where it does not answer.
  BenchLoad(const BenchFlags& flags, StopSignal& stop,
            std::function<void(const BenchProgress&)> tell);
  ~BenchLoad();

  // One request alone, before the measurement. Throws the server's error.
  void warm_up();
  // One record for each request that was sent. After a signal those under way are cancelled and no
  // more are sent; nor are they when the server has gone.
  std::vector<BenchRecord> run();
  bool stopped() const { return stopped_; }  // by a signal

 private:
  struct Call;
  // A connection, which carries a limited number of calls: the rest would wait in the client.
  struct Lane {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<v1::Inference::Stub> stub;
    int32_t under_way = 0;
  };
  using Clock = std::chrono::steady_clock;

  void drive(const std::vector<double>& due, int32_t most_at_once);
  double next_due(const std::vector<double>& due) const;
  void start(double due);
  Lane& open_lane();
  size_t free_lane();
  void wait(double until);  // for one event, which it handles
  void go_on(Call& call, bool ok);
  static void take(const v1::Delta& delta, double at, BenchRecord& record);
  void end(Call& call);
  void stop_all();
  double now() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }

  const BenchFlags& flags_;
  const std::string token_;
  StopSignal& stop_;
  const std::function<void(const BenchProgress&)> tell_;
  std::vector<Lane> lanes_;
  std::vector<int32_t> words_;
  grpc::CompletionQueue queue_;

  Clock::time_point began_;
  std::map<void*, std::unique_ptr<Call>> calls_;  // those under way, by their tags
  std::vector<BenchRecord> records_;              // those ended
  grpc::Status failure_;                          // of the last that was not answered
  BenchProgress progress_;
  int32_t num_sent_ = 0;
  double quiet_until_ = 0;  // in a closed loop: the server has no place before
  bool sends_ = true;
  bool stopped_ = false;
};

}  // namespace trireme

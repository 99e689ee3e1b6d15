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

// Token ids of common words, by the server's own tokenizer. Throws Error where it does not answer.
std::vector<int32_t> ask_for_words(v1::Inference::Stub& stub, const std::string& token);

struct BenchProgress {
  int32_t ended = 0;
  int32_t under_way = 0;
  int64_t output_tokens = 0;
};

// Owned and used by one thread, on which all requests are driven: their times are those at which it
// sees their messages.
class BenchLoad {
 public:
  // flags and stop outlive it. tell: called often while it runs. Asks the server for words; throws
  // its error.
  BenchLoad(std::shared_ptr<grpc::Channel> channel, const BenchFlags& flags, StopSignal& stop,
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
  using Clock = std::chrono::steady_clock;

  void drive(const std::vector<double>& due, int32_t most_at_once);
  void start(double due);
  void wait(double until);  // for one event, which it handles
  void go_on(Call& call, bool ok);
  static void take(const v1::Delta& delta, double at, BenchRecord& record);
  void end(Call& call);
  void stop_all();
  double now() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }

  const std::shared_ptr<grpc::Channel> channel_;
  const BenchFlags& flags_;
  const std::string token_;
  StopSignal& stop_;
  const std::function<void(const BenchProgress&)> tell_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  const std::vector<int32_t> words_;
  grpc::CompletionQueue queue_;

  Clock::time_point began_;
  std::map<void*, std::unique_ptr<Call>> calls_;  // those under way, by their tags
  std::vector<BenchRecord> records_;              // those ended
  grpc::Status failure_;                          // of the last that was not answered
  BenchProgress progress_;
  int32_t num_sent_ = 0;
  bool sends_ = true;
  bool stopped_ = false;
};

}  // namespace trireme

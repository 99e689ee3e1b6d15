// SPDX-License-Identifier: Apache-2.0
// One request as the engine sees it, after validation and tokenisation, and where its output goes.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {

using Clock = std::chrono::steady_clock;

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;        // (0, 1]
  int32_t top_k = 0;         // 0: off
  uint64_t seed = 0;
  int32_t logprobs = 0;  // best K of each output token
};

struct TokenScore {
  int32_t id = 0;
  float logprob = 0;
};

struct OutputToken {
  int32_t id = 0;
  std::vector<TokenScore> logprobs;  // best first
};

enum class FinishReason { kStop, kLength };

// Receives a request's output. Called on the engine's thread, in order: must not block. After
// on_finished or on_error nothing more comes.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  // False: the text is complete (a stop string matched); the request then finishes with kStop.
  virtual bool on_token(const OutputToken& token) = 0;
  // stop_id: the stop id that ended it, if one did; it was given to on_token before.
  virtual void on_finished(FinishReason reason, std::optional<int32_t> stop_id) = 0;
  virtual void on_error(Code code, const std::string& message) = 0;
};

struct Request {
  std::string id;               // printable ASCII: it is logged, and named in messages
  std::vector<int32_t> prompt;  // at least one id
  SamplingParams sampling;
  int32_t max_tokens = 1;         // prompt + max_tokens <= the placement's context
  std::vector<int32_t> stop_ids;  // a drawn token among these ends the request
  std::optional<Clock::time_point> deadline;
  std::shared_ptr<RequestSink> sink;
};

}  // namespace trireme

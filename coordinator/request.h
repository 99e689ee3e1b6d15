// SPDX-License-Identifier: Apache-2.0
// One request as the engine sees it, after validation and tokenisation, and where its output goes.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {

using Clock = std::chrono::steady_clock;

// What they do, and in which order: worker/sampler.h.
struct SamplingParams {
  double temperature = 1;  // 0: greedy
  double top_p = 1;        // (0, 1]
  int32_t top_k = 0;       // 0: off
  double min_p = 0;        // 0: off
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  std::vector<std::pair<int32_t, double>> logit_bias;  // token id, what is added to its logit
  uint64_t seed = 0;
  int32_t logprobs = 0;             // best K of each output token
  int32_t min_tokens = 0;           // before as many have been drawn,
  std::vector<int32_t> banned_ids;  // these are not: the ids that would end the request
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

// One answer of the n that a client may ask for.
struct Request {
  std::string id;               // printable ASCII: it is logged, and named in messages
  int32_t index = 0;            // which of the answers that share the id
  std::vector<int32_t> prompt;  // at least one id
  SamplingParams sampling;
  int32_t max_tokens = 1;         // prompt + max_tokens <= the placement's context
  std::vector<int32_t> stop_ids;  // a drawn token among these ends the request
  std::optional<Clock::time_point> deadline;
  std::shared_ptr<RequestSink> sink;
};

}  // namespace trireme

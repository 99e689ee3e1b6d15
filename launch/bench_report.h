// SPDX-License-Identifier: Apache-2.0
// What the requests of a benchmark say together. Names and definitions as those of vLLM's `bench
// serve`, so that numbers can be set beside each other; but E2EL goes to the end of the stream,
// there to the last token.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launch/options.h"

namespace trireme {

// What became of one request. Times in seconds since the benchmark began.
struct BenchRecord {
  enum class Outcome { kAnswered, kRefused, kFailed, kStopped };
  Outcome outcome = Outcome::kStopped;
  double sent = 0;
  double late = 0;                    // behind the time when it was to be sent
  std::vector<double> token_seconds;  // when each message with tokens came
  double ended = 0;
  int32_t prompt_tokens = 0;  // as the server counts
  int32_t output_tokens = 0;
  std::string error;  // of one that was refused or failed: the server's words

  double ttft() const { return token_seconds.front() - sent; }
  double e2el() const { return ended - sent; }
  // Without the first token; nullopt: there is but one.
  std::optional<double> tpot() const;
};

// Of some values; percentiles between two of them are interpolated, as numpy's are.
struct Spread {
  double mean = 0, median = 0, p90 = 0, p95 = 0, p99 = 0;
};
// nullopt: there is no value.
std::optional<Spread> spread_of(std::vector<double> values);

struct BenchReport {
  int64_t sent = 0, answered = 0, refused = 0, failed = 0;
  std::map<std::string, int64_t> failures;       // by what the server said
  std::string refusal;                           // what it said of the last that was refused
  double seconds = 0;                            // from the first that was sent to the last end
  int64_t prompt_tokens = 0, output_tokens = 0;  // of those answered
  double requests_per_second = 0, output_per_second = 0, tokens_per_second = 0;
  std::optional<double> goodput;                // requests per second; nullopt: no limit was given
  std::optional<Spread> ttft, tpot, itl, e2el;  // milliseconds
  double latest = 0;  // how far behind its time a request was sent at most, in milliseconds
};

BenchReport summarise(const std::vector<BenchRecord>& records, const BenchFlags& flags);

std::string report_json(const BenchReport& report, const BenchFlags& flags);
std::string report_tables(const BenchReport& report, const BenchFlags& flags);

}  // namespace trireme

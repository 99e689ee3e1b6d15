// SPDX-License-Identifier: Apache-2.0
#include "launch/bench_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "launch/client.h"
#include "launch/text_table.h"

namespace trireme {
namespace {

using nlohmann::ordered_json;

constexpr double kMilliseconds = 1e3;
// What a report cares to say of its own clock: less is within what a network does.
constexpr double kLateMs = 10;

double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

bool is_good(const BenchRecord& record, const BenchFlags& flags) {
  const auto within = [](double seconds, const auto& limit) {
    return !limit || seconds <= std::chrono::duration<double>(*limit).count();
  };
  return within(record.ttft(), flags.ttft_max) &&
         within(record.tpot().value_or(0), flags.tpot_max) && within(record.e2el(), flags.e2el_max);
}

ordered_json to_json(const std::optional<Spread>& spread) {
  if (!spread) return nullptr;
  return {{"mean", spread->mean},
          {"median", spread->median},
          {"p90", spread->p90},
          {"p95", spread->p95},
          {"p99", spread->p99}};
}

TextRow row_of(const std::string& name, const std::optional<Spread>& spread) {
  TextRow row{name};
  if (!spread) return {name, "-", "-", "-", "-", "-"};
  for (const double value : {spread->mean, spread->median, spread->p90, spread->p95, spread->p99}) {
    row.push_back(three_figures(value));
  }
  return row;
}

std::string load_of(const BenchFlags& flags) {
  if (flags.concurrency) return std::to_string(*flags.concurrency) + " at once";
  return three_figures(*flags.rate) + " a second" +
         (flags.burstiness == 1.0 ? "" : ", burstiness " + three_figures(flags.burstiness));
}

}  // namespace

std::optional<double> BenchRecord::tpot() const {
  if (output_tokens < 2) return std::nullopt;
  return (token_seconds.back() - token_seconds.front()) / (output_tokens - 1);
}

std::optional<Spread> spread_of(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return Spread{sum / static_cast<double>(values.size()), percentile(values, 0.5),
                percentile(values, 0.9), percentile(values, 0.95), percentile(values, 0.99)};
}

BenchReport summarise(const std::vector<BenchRecord>& records, const BenchFlags& flags) {
  BenchReport report;
  report.sent = static_cast<int64_t>(records.size());
  std::vector<double> ttft, tpot, itl, e2el;
  double first = 0, last = 0;
  int64_t good = 0;
  for (const BenchRecord& record : records) {
    first = &record == records.data() ? record.sent : std::min(first, record.sent);
    last = std::max(last, record.ended);
    report.latest = std::max(report.latest, kMilliseconds * record.late);
    switch (record.outcome) {
      case BenchRecord::Outcome::kAnswered: break;
      case BenchRecord::Outcome::kRefused:
        ++report.refused;
        report.refusal = record.error;
        continue;
      case BenchRecord::Outcome::kFailed:
        ++report.failed;
        ++report.failures[record.error];
        continue;
      case BenchRecord::Outcome::kStopped: continue;
    }
    ++report.answered;
    report.prompt_tokens += record.prompt_tokens;
    report.output_tokens += record.output_tokens;
    good += is_good(record, flags) ? 1 : 0;
    ttft.push_back(kMilliseconds * record.ttft());
    e2el.push_back(kMilliseconds * record.e2el());
    if (const auto time = record.tpot()) tpot.push_back(kMilliseconds * *time);
    for (size_t i = 1; i < record.token_seconds.size(); ++i) {
      itl.push_back(kMilliseconds * (record.token_seconds[i] - record.token_seconds[i - 1]));
    }
  }
  report.seconds = last - first;
  const auto per_second = [&](int64_t count) {
    return report.seconds > 0 ? static_cast<double>(count) / report.seconds : 0;
  };
  report.requests_per_second = per_second(report.answered);
  report.output_per_second = per_second(report.output_tokens);
  report.tokens_per_second = per_second(report.prompt_tokens + report.output_tokens);
  if (flags.ttft_max || flags.tpot_max || flags.e2el_max) report.goodput = per_second(good);
  report.ttft = spread_of(std::move(ttft));
  report.tpot = spread_of(std::move(tpot));
  report.itl = spread_of(std::move(itl));
  report.e2el = spread_of(std::move(e2el));
  return report;
}

std::string report_json(const BenchReport& report, const BenchFlags& flags) {
  ordered_json json;
  json["requests"] = flags.requests;
  json["input_len"] = flags.input_len;
  json["output_len"] = flags.output_len;
  if (flags.concurrency) json["concurrency"] = *flags.concurrency;
  if (flags.rate) json["rate"] = *flags.rate;
  if (flags.rate) json["burstiness"] = flags.burstiness;
  json["seed"] = flags.seed;
  json["temperature"] = flags.temperature;
  const auto add_limit = [&](const char* name, const auto& limit) {
    if (limit) json[name] = limit->count();
  };
  add_limit("ttft_max_ms", flags.ttft_max);
  add_limit("tpot_max_ms", flags.tpot_max);
  add_limit("e2el_max_ms", flags.e2el_max);
  json["sent"] = report.sent;
  json["answered"] = report.answered;
  json["refused"] = report.refused;
  json["failed"] = report.failed;
  if (report.failed > 0) json["failures"] = report.failures;
  json["duration_s"] = report.seconds;
  json["prompt_tokens"] = report.prompt_tokens;
  json["output_tokens"] = report.output_tokens;
  json["request_throughput"] = report.requests_per_second;
  json["output_throughput"] = report.output_per_second;
  json["total_throughput"] = report.tokens_per_second;
  if (report.goodput) json["goodput"] = *report.goodput;
  json["ttft_ms"] = to_json(report.ttft);
  json["tpot_ms"] = to_json(report.tpot);
  json["itl_ms"] = to_json(report.itl);
  json["e2el_ms"] = to_json(report.e2el);
  json["latest_send_ms"] = report.latest;
  // What a server said of a failure may be no UTF-8.
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string report_tables(const BenchReport& report, const BenchFlags& flags) {
  std::string text = std::to_string(report.answered) + " of " + std::to_string(flags.requests) +
                     " requests answered, " + std::to_string(flags.input_len) + " + " +
                     std::to_string(flags.output_len) + " tokens each, " + load_of(flags) +
                     ", in " + three_figures(report.seconds) + " s\n";
  if (report.refused > 0) {
    text += std::to_string(report.refused) + " refused: " + for_terminal(report.refusal) + "\n";
  }
  for (const auto& [error, count] : report.failures) {
    text += std::to_string(count) + " failed: " + for_terminal(error) + "\n";
  }
  TextRow names{"requests/s", "output tokens/s", "all tokens/s"};
  TextRow rates{three_figures(report.requests_per_second), three_figures(report.output_per_second),
                three_figures(report.tokens_per_second)};
  if (report.goodput) {
    names.emplace_back("goodput, requests/s");
    rates.push_back(three_figures(*report.goodput));
  }
  text += draw_table({names, rates});
  text += draw_table({{"ms", "mean", "median", "p90", "p95", "p99"},
                      row_of("TTFT", report.ttft),
                      row_of("TPOT", report.tpot),
                      row_of("ITL", report.itl),
                      row_of("E2EL", report.e2el)});
  if (report.latest > kLateMs) {
    text += "requests were sent up to " + three_figures(report.latest) +
            " ms late: this client had no time for them\n";
  }
  return text;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// What `trireme bench` sends when, and what it makes of the times.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "launch/bench_load.h"
#include "launch/bench_report.h"

namespace trireme {
namespace {

using Outcome = BenchRecord::Outcome;
using nlohmann::json;

BenchFlags flags_of(int32_t requests) {
  BenchFlags flags;
  flags.requests = requests;
  flags.input_len = 7;
  flags.output_len = 3;
  return flags;
}

BenchRecord answered(double sent, std::vector<double> token_seconds, double ended) {
  BenchRecord record;
  record.outcome = Outcome::kAnswered;
  record.sent = sent;
  record.output_tokens = static_cast<int32_t>(token_seconds.size());
  record.prompt_tokens = 7;
  record.token_seconds = std::move(token_seconds);
  record.ended = ended;
  return record;
}

std::vector<double> gaps_of(const std::vector<double>& times) {
  std::vector<double> gaps(times.size());
  std::adjacent_difference(times.begin(), times.end(), gaps.begin());
  gaps.erase(gaps.begin());
  return gaps;
}

// Of 20,000 gaps: the mean is 1 / rate, the square of the variation 1 / burstiness.
TEST(BenchArrivals, HaveTheRateAndTheBurstiness) {
  for (const double burstiness : {0.25, 1.0, 4.0}) {
    BenchFlags flags = flags_of(20'001);
    flags.rate = 50;
    flags.burstiness = burstiness;
    const std::vector<double> times = arrival_times(flags);
    ASSERT_EQ(times.size(), 20'001u);
    EXPECT_EQ(times.front(), 0);
    EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
    const std::vector<double> gaps = gaps_of(times);
    const auto count = static_cast<double>(gaps.size());
    const double mean = std::accumulate(gaps.begin(), gaps.end(), 0.0) / count;
    double squares = 0;
    for (const double gap : gaps) squares += (gap - mean) * (gap - mean);
    EXPECT_NEAR(mean, 0.02, 0.02 * 4 / std::sqrt(burstiness * count));
    EXPECT_NEAR(squares / count / (mean * mean), 1 / burstiness, 0.15 / burstiness);
  }
}

TEST(BenchArrivals, AreAllAtOnceWithoutARate) {
  EXPECT_EQ(arrival_times(flags_of(3)), std::vector<double>(3, 0.0));
}

TEST(BenchArrivals, AreTheSeeds) {
  BenchFlags flags = flags_of(10);
  flags.rate = 1;
  const auto first = arrival_times(flags);
  EXPECT_EQ(arrival_times(flags), first);
  flags.seed = 1;
  EXPECT_NE(arrival_times(flags), first);
}

TEST(BenchPrompts, AreDrawnFromTheWordsByTheirNumber) {
  BenchFlags flags = flags_of(100);
  flags.input_len = 50;
  const std::vector<int32_t> words{3, 5, 9};
  std::set<std::vector<int32_t>> all;
  std::set<int32_t> used;
  for (int32_t index = 0; index < 100; ++index) {
    const std::vector<int32_t> prompt = make_prompt(words, flags, index);
    ASSERT_EQ(prompt.size(), 50u);
    used.insert(prompt.begin(), prompt.end());
    all.insert(prompt);
  }
  EXPECT_EQ(used, (std::set<int32_t>{3, 5, 9}));
  EXPECT_EQ(all.size(), 100u);
  EXPECT_EQ(make_prompt(words, flags, 42), make_prompt(words, flags, 42));
  const auto before = make_prompt(words, flags, 42);
  flags.seed = 1;
  EXPECT_NE(make_prompt(words, flags, 42), before);
}

// The values are numpy.percentile's.
TEST(BenchSpread, InterpolatesAsNumpyDoes) {
  EXPECT_FALSE(spread_of({}).has_value());
  const auto one = spread_of({5});
  EXPECT_EQ(one->mean, 5);
  EXPECT_EQ(one->p99, 5);
  const auto spread = spread_of({40, 15, 35, 20, 50});
  EXPECT_DOUBLE_EQ(spread->mean, 32);
  EXPECT_DOUBLE_EQ(spread->median, 35);
  EXPECT_DOUBLE_EQ(spread->p90, 46);
  EXPECT_DOUBLE_EQ(spread->p95, 48);
  EXPECT_DOUBLE_EQ(spread->p99, 49.6);
}

TEST(BenchReport, CountsWhatWasAnswered) {
  BenchFlags flags = flags_of(6);
  flags.concurrency = 2;
  flags.ttft_max = std::chrono::milliseconds(150);
  flags.tpot_max = std::chrono::milliseconds(500);
  std::vector<BenchRecord> records{answered(1, {1.1, 1.3, 1.9}, 2.0),  // TTFT 100, TPOT 400 ms
                                   answered(2, {2.2, 2.3, 2.4}, 2.5),  // TTFT too long
                                   answered(3, {3.1, 4.0, 5.0}, 5.0),  // TPOT too long
                                   BenchRecord{},
                                   BenchRecord{},
                                   BenchRecord{}};
  records[3].outcome = Outcome::kRefused;
  records[3].error = "the queue is full";
  records[4].outcome = Outcome::kFailed;
  records[4].error = "rank 1 is lost";
  records[5].outcome = Outcome::kStopped;
  for (size_t i = 3; i < 6; ++i) records[i].sent = records[i].ended = 2;
  const BenchReport report = summarise(records, flags);
  EXPECT_EQ(report.sent, 6);
  EXPECT_EQ(report.answered, 3);
  EXPECT_EQ(report.refused, 1);
  EXPECT_NE(report_tables(report, flags).find("1 refused: the queue is full\n"), std::string::npos);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.failures.at("rank 1 is lost"), 1);
  EXPECT_DOUBLE_EQ(report.seconds, 4);
  EXPECT_EQ(report.prompt_tokens, 21);
  EXPECT_EQ(report.output_tokens, 9);
  EXPECT_DOUBLE_EQ(report.requests_per_second, 0.75);
  EXPECT_DOUBLE_EQ(report.output_per_second, 2.25);
  EXPECT_DOUBLE_EQ(report.tokens_per_second, 7.5);
  EXPECT_DOUBLE_EQ(report.goodput.value(), 0.25);
  EXPECT_NEAR(report.ttft->median, 100, 1e-9);
  EXPECT_NEAR(report.tpot->median, 400, 1e-9);
  EXPECT_NEAR(report.itl->mean, 1e3 * (0.2 + 0.6 + 0.1 + 0.1 + 0.9 + 1.0) / 6, 1e-9);
  EXPECT_NEAR(report.e2el->median, 1000, 1e-9);
}

// Nothing to divide by, and nothing to show.
TEST(BenchReport, OfNothingIsEmpty) {
  BenchFlags flags = flags_of(5);
  flags.rate = 2;
  const BenchReport report = summarise({}, flags);
  EXPECT_EQ(report.requests_per_second, 0);
  EXPECT_FALSE(report.goodput.has_value());
  const json parsed = json::parse(report_json(report, flags));
  EXPECT_TRUE(parsed.at("ttft_ms").is_null());
  EXPECT_FALSE(parsed.contains("goodput"));
  EXPECT_NE(report_tables(report, flags).find("0 of 5 requests answered"), std::string::npos);
}

TEST(BenchReport, OneTokenHasNoTimePerToken) {
  BenchFlags flags = flags_of(1);
  flags.concurrency = 1;
  flags.tpot_max = std::chrono::milliseconds(1);
  const BenchReport report = summarise({answered(0, {0.5}, 0.6)}, flags);
  EXPECT_FALSE(report.tpot.has_value());
  EXPECT_GT(report.goodput.value(), 0) << "a limit that does not apply is kept";
}

TEST(BenchReport, IsJsonAndTablesOfTheSameNumbers) {
  BenchFlags flags = flags_of(2);
  flags.rate = 0.5;
  flags.burstiness = 2;
  std::vector<BenchRecord> records{answered(0, {0.25, 0.5, 0.75}, 0.75), BenchRecord{}};
  records[1].outcome = Outcome::kFailed;
  records[1].sent = records[1].ended = 2;
  records[1].late = 0.025;
  records[1].error = "bad \x1b[2J \xff";
  const BenchReport report = summarise(records, flags);
  const json parsed = json::parse(report_json(report, flags));
  EXPECT_EQ(parsed.at("rate"), 0.5);
  EXPECT_EQ(parsed.at("burstiness"), 2);
  EXPECT_FALSE(parsed.contains("concurrency"));
  EXPECT_EQ(parsed.at("answered"), 1);
  EXPECT_EQ(parsed.at("failed"), 1);
  EXPECT_EQ(parsed.at("failures").size(), 1u);
  EXPECT_EQ(parsed.at("duration_s"), 2);
  EXPECT_EQ(parsed.at("output_throughput"), 1.5);
  EXPECT_EQ(parsed.at("ttft_ms").at("p99"), 250);
  EXPECT_EQ(parsed.at("tpot_ms").at("mean"), 250);
  EXPECT_EQ(parsed.at("latest_send_ms"), 25);
  const std::string tables = report_tables(report, flags);
  for (const char* part : {"1 of 2 requests answered", "0.5 a second, burstiness 2", "  TTFT  250",
                           "  E2EL  750", "1 failed: bad [2J", "up to 25 ms late"}) {
    EXPECT_NE(tables.find(part), std::string::npos) << part << "\n" << tables;
  }
}

}  // namespace
}  // namespace trireme

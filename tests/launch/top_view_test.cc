// SPDX-License-Identifier: Apache-2.0
#include "launch/top_view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

TopState example(int num_ranks = 3) {
  TopState state;
  state.server = "127.0.0.1:50051";
  v1::ClusterHealth& health = state.health.emplace();
  health.set_state("not serving");
  for (int rank = 1; rank <= num_ranks; ++rank) {
    v1::RankHealth& one = *health.add_ranks();
    one.set_rank(rank);
    one.set_host("node" + std::to_string(rank));
    one.set_state("serving");
    one.set_replica(0);
    one.set_stage(rank - 1);
    one.set_micro_batch(16);
    one.set_current_micro_batch(17);
    one.set_operation("layer 7 all-reduce");
    one.set_since_ms(300);
    one.set_heartbeat_age_ms(100);
  }
  v1::RankHealth& stopped = *health.mutable_ranks(num_ranks - 1);
  stopped.set_state("suspected");
  stopped.set_why("silent: no heartbeat for 2.1 s");
  health.mutable_ranks(0)->add_waiting_for(num_ranks);
  v1::Load& load = state.load.emplace();
  load.set_running(12);
  load.set_waiting(3);
  load.set_max_queue(256);
  load.set_blocks_total(100);
  load.set_blocks_free(75);
  load.set_output_tokens(12345);
  return state;
}

int columns(const std::string& line) {
  return static_cast<int>(
      std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + '\n';
  return text;
}

TEST(TopView, ShowsWhoWaitsForWhom) {
  TopState state = example();
  state.output_rate = 345.4;
  state.health_age = std::chrono::milliseconds(1700);
  const std::string text = joined(top_lines(state, {}));
  EXPECT_NE(text.find("NOT SERVING"), std::string::npos) << text;
  EXPECT_NE(text.find("running 12   waiting 3/256   KV [###-------] 25 %   out 345/s"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("   1 0/0   serving   node1"), std::string::npos) << text;
  EXPECT_NE(text.find(" 17 layer 7 all-reduce   3 "), std::string::npos) << text;
  EXPECT_NE(text.find("2.0 s"), std::string::npos) << text;
  EXPECT_NE(text.find("rank 3 on node3: silent: no heartbeat for 2.1 s"), std::string::npos)
      << text;
  EXPECT_EQ(text.find('\033'), std::string::npos);
}

TEST(TopView, ShowsOnceWhatIsNotAsPlanned) {
  TopState state = example();
  for (const int rank : {0, 1}) {
    state.health->mutable_ranks(rank)->set_drift(
        "stage 0 of replica 0, rank 1 (node1), takes 9 ms");
  }
  const std::string text = joined(top_lines(state, {}));
  const size_t first = text.find("takes 9 ms");
  EXPECT_NE(first, std::string::npos) << text;
  EXPECT_EQ(text.find("takes 9 ms", first + 1), std::string::npos) << text;
}

TEST(TopView, FitsItsTerminal) {
  TopState state = example(40);
  state.health->mutable_ranks(3)->set_host(std::string(300, 'h') + "ü");
  state.health->mutable_ranks(3)->set_operation("an operation of a name that is far too long");
  for (int i = 0; i < 50; ++i) state.health->mutable_ranks(4)->add_waiting_for(i);
  state.health->set_first_failure("first failure: " + std::string(500, 'x') + " y z");
  state.server = std::string(200, 's');
  for (const int width : {68, 80, 100, 200}) {
    for (const int height : {0, 24, 50}) {
      TopStyle style;
      style.width = width;
      style.height = height;
      style.footer = "q quits";
      const std::vector<std::string> lines = top_lines(state, style);
      for (const std::string& line : lines) EXPECT_LE(columns(line), width) << line;
      if (height > 0) {
        EXPECT_LE(static_cast<int>(lines.size()), height);
        // Whoever is in trouble is shown.
        EXPECT_NE(joined(lines).find("suspected"), std::string::npos) << joined(lines);
      }
    }
  }
}

// Bytes from a rank do not command the terminal.
TEST(TopView, TextOfOthersIsOnlyText) {
  TopState state = example();
  state.health->mutable_ranks(0)->set_host("\033[2Jevil\nhost");
  state.health->mutable_ranks(0)->set_state("\033]0;x");
  state.health->mutable_ranks(2)->set_why("\033[31m\nx");
  state.health->set_first_failure("a\033[Hb");
  state.notice = "\033[H";
  for (const std::string& line : top_lines(state, {})) {
    for (const char c : line) EXPECT_TRUE(static_cast<unsigned char>(c) >= ' ') << line;
  }
}

TEST(TopView, ColoursOnlyWhereAsked) {
  TopStyle style;
  style.colour = true;
  const std::string text = joined(top_lines(example(), style));
  EXPECT_NE(text.find("\033[1;33msuspected\033[0m"), std::string::npos) << text;
}

TEST(TopView, BeforeAnythingIsKnown) {
  TopState state;
  state.server = "unix:/s";
  state.notice = "the server has ended";
  const std::string text = joined(top_lines(state, {}));
  EXPECT_NE(text.find("NO ANSWER"), std::string::npos);
  EXPECT_NE(text.find("the server has ended"), std::string::npos);
  EXPECT_TRUE(nlohmann::json::parse(top_json(state))["health"].is_null());
}

TEST(TopView, JsonIsALine) {
  const std::string line = top_json(example());
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const nlohmann::json json = nlohmann::json::parse(line);
  EXPECT_EQ(json["health"]["serving"], false);  // also what is not set
  EXPECT_EQ(json["health"]["ranks"][2]["why"], "silent: no heartbeat for 2.1 s");
  EXPECT_EQ(json["load"]["running"], 12);
}

}  // namespace
}  // namespace trireme

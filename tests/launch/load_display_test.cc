// SPDX-License-Identifier: Apache-2.0
#include "launch/load_display.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kMiB = 1 << 20;

struct Shown {
  explicit Shown(bool terminal = false)
      : display(
            "loading", terminal, [this](const std::string& text) { lines.push_back(text); },
            start) {}

  void update(int rank, uint64_t done, uint64_t total, LoadPhase phase = LOAD_PHASE_READING) {
    LoadProgress progress;
    progress.set_bytes_done(done);
    progress.set_bytes_total(total);
    progress.set_phase(phase);
    display.update(rank, progress);
  }
  // The line of a moment when one is due.
  std::string at(milliseconds time) {
    lines.clear();
    display.tick(start + time);
    return lines.empty() ? "" : lines.back();
  }

  const LoadDisplay::Time start{};
  std::vector<std::string> lines;
  LoadDisplay display;
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(LoadDisplay, SpeaksEveryTwoSecondsThoughNothingCame) {
  Shown shown;
  shown.display.expect(1, "a");
  shown.display.expect(2, "b");
  EXPECT_EQ(shown.at(milliseconds(1999)), "");
  EXPECT_EQ(shown.at(seconds(2)),
            "loading   0 % 0 B of 0 B, 0 B/s; rank 1 on a opens the checkpoint\n");
  EXPECT_EQ(shown.at(milliseconds(3900)), "");
  shown.update(1, 50 * kMiB, 100 * kMiB);
  // How much rank 2 has to do is not known: no share of it all can be told.
  const std::string line = shown.at(seconds(4));
  EXPECT_TRUE(has(line, "loading   0 %")) << line;
  EXPECT_TRUE(has(line, "rank 2 on b opens the checkpoint")) << line;
}

TEST(LoadDisplay, ReachesTheEndWhenAllAreReadyAndNotBefore) {
  Shown shown;
  shown.display.expect(1, "a");
  shown.display.expect(2, "b");
  shown.update(1, 100 * kMiB, 100 * kMiB);
  shown.display.ready(1);
  shown.update(2, 100 * kMiB, 100 * kMiB, LOAD_PHASE_ALLOCATING);
  std::string line = shown.at(seconds(2));
  EXPECT_TRUE(has(line, "loading  99 %")) << line;
  EXPECT_TRUE(has(line, "rank 2 on b allocates its KV cache")) << line;
  shown.update(2, 100 * kMiB, 100 * kMiB, LOAD_PHASE_WARMING_UP);
  line = shown.at(seconds(4));
  EXPECT_TRUE(has(line, "rank 2 on b runs its largest steps")) << line;
  shown.display.ready(2);
  shown.lines.clear();
  shown.display.finish(shown.start + seconds(4));
  ASSERT_EQ(shown.lines.size(), 1u);
  EXPECT_EQ(shown.lines[0], "loading 100 % 200.0 MiB, 50.0 MiB/s, 4.0 s\n");
}

TEST(LoadDisplay, RateIsOfTheLastSecondsAndTheTimeLeftOfTheSlowest) {
  Shown shown;
  for (const int rank : {1, 2, 3}) shown.display.expect(rank, "a");
  const auto all = [&](uint64_t one, uint64_t two, uint64_t three) {
    shown.update(1, one * kMiB, 100 * kMiB);
    shown.update(2, two * kMiB, 100 * kMiB);
    shown.update(3, three * kMiB, 100 * kMiB);
  };
  all(10, 10, 10);
  shown.at(seconds(10));
  all(20, 20, 20);
  const std::string even = shown.at(seconds(12));
  EXPECT_TRUE(has(even, "loading  20 % 60.0 MiB of 300.0 MiB, 15.0 MiB/s, 48 s left")) << even;
  EXPECT_FALSE(has(even, "rank")) << even;
  all(80, 70, 25);
  const std::string lag = shown.at(seconds(20));
  EXPECT_TRUE(has(lag, "60 s left; rank 3 on a is slowest: 25 %")) << lag;
}

TEST(LoadDisplay, OneLineOnATerminal) {
  Shown shown(true);
  shown.display.expect(1, "a");
  shown.update(1, 50, 100);
  const std::string line = shown.at(milliseconds(100));
  EXPECT_TRUE(line.starts_with("\r\033[K")) << line;
  EXPECT_TRUE(has(line, "[===============               ]")) << line;
  EXPECT_FALSE(has(line, "\n"));
  shown.display.ready(1);
  shown.lines.clear();
  shown.display.finish(shown.start + seconds(1));
  EXPECT_TRUE(shown.lines.back().ends_with("\n"));
}

// A rank is not trusted to count right.
TEST(LoadDisplay, MoreThanAllIsAll) {
  Shown shown;
  shown.display.expect(1, "a");
  shown.update(1, ~uint64_t{0}, 100);
  EXPECT_TRUE(has(shown.at(seconds(2)), "loading  99 % 100 B of 100 B"));
  shown.update(1, 0, 0);
  EXPECT_TRUE(has(shown.at(seconds(4)), "loading   0 % 0 B of 0 B"));
}

}  // namespace
}  // namespace trireme

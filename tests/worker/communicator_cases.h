// SPDX-License-Identifier: Apache-2.0
// What every Communicator must do, called by all ranks of a group at once. Run over threads by
// communicator_test.cc and over MPI by mpi/communicator_mpi_main.cc.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "worker/comm/communicator.h"

namespace trireme {

using Floats = std::vector<float>;

// Numbers of very different sizes, so that another order of summation gives other bits.
inline float sample(int rank, int64_t index) {
  uint64_t x = (static_cast<uint64_t>(rank) << 40) + index + 1;
  x = (x ^ (x >> 31)) * 0x7fb5d329728ea185u;
  x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44du;
  const float fraction = static_cast<float>((x >> 40) & 0xffff) / 65536.0f - 0.5f;
  return fraction * static_cast<float>(1u << ((x >> 20) % 24));
}

inline Floats samples(int rank, int64_t count) {
  Floats values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = sample(rank, i);
  return values;
}

inline Tensor tensor(Floats& values, int64_t rows) {
  return {values.data(), DType::kF32, rows, static_cast<int64_t>(values.size()) / rows};
}

inline void expect_same_bits(const Floats& got, const Floats& expected) {
  ASSERT_EQ(got.size(), expected.size());
  if (std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0) return;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], expected[i]) << "element " << i;
}

inline void check_all_reduce(Communicator& group, int64_t rows, int64_t cols) {
  Floats x = samples(group.rank(), rows * cols);
  Floats expected = samples(0, rows * cols);
  for (int r = 1; r < group.size(); ++r) {
    for (int64_t i = 0; i < rows * cols; ++i) expected[i] += sample(r, i);
  }
  group.all_reduce_sum(tensor(x, rows));
  expect_same_bits(x, expected);
}

// Sizes on both sides of every change of algorithm, with parts that do not divide evenly.
inline void check_all_reduces(Communicator& group) {
  for (const int64_t rows : {1, 2, 7, 33, 100}) {
    for (const int64_t cols : {1, 3, 576, 4097}) check_all_reduce(group, rows, cols);
  }
  check_all_reduce(group, 1, 8192);
  check_all_reduce(group, 1, 8193);
  check_all_reduce(group, 5, (1 << 20) + 17);
  Tensor nothing(nullptr, DType::kF32, 0, 64);
  group.all_reduce_sum(nothing);
}

// A row's sum is the same alone and among others.
inline void check_rows_alone(Communicator& group) {
  constexpr int64_t kRows = 40;
  constexpr int64_t kCols = 2048;
  Floats together = samples(group.rank(), kRows * kCols);
  group.all_reduce_sum(tensor(together, kRows));
  for (const int64_t row : {0, 17, 39}) {
    const Floats mine = samples(group.rank(), kRows * kCols);
    Floats alone(mine.begin() + row * kCols, mine.begin() + (row + 1) * kCols);
    group.all_reduce_sum(tensor(alone, 1));
    expect_same_bits(alone,
                     Floats(together.begin() + row * kCols, together.begin() + (row + 1) * kCols));
  }
}

// Rank r has (3 r) % 7 columns: none for rank 0.
inline void check_gathers(Communicator& group) {
  std::vector<int> cols(group.size());
  for (int r = 0; r < group.size(); ++r) cols[r] = 3 * r % 7;
  const int64_t total = std::accumulate(cols.begin(), cols.end(), int64_t{0});
  for (int root = 0; root < group.size(); ++root) {
    for (const int64_t rows : {1, 5, 0}) {
      Floats mine(rows * cols[group.rank()]);
      for (size_t i = 0; i < mine.size(); ++i) mine[i] = 1000.0f * group.rank() + i;
      Floats all(group.rank() == root ? rows * total : 0, -1.0f);
      group.gather_columns(Tensor(all.data(), DType::kF32, rows, total),
                           Tensor(mine.data(), DType::kF32, rows, cols[group.rank()]), cols, root);
      if (group.rank() != root) continue;
      size_t at = 0;
      for (int64_t t = 0; t < rows; ++t) {
        for (int r = 0; r < group.size(); ++r) {
          for (int c = 0; c < cols[r]; ++c) {
            ASSERT_EQ(all[at++], 1000.0f * r + t * cols[r] + c) << "row " << t << " rank " << r;
          }
        }
      }
    }
  }
}

inline void check_broadcasts(Communicator& group) {
  for (int root = 0; root < group.size(); ++root) {
    for (const int64_t count : {1, 1000, 100000}) {
      Floats x = group.rank() == root ? samples(root, count) : Floats(count, -1.0f);
      group.broadcast(tensor(x, 1), root);
      expect_same_bits(x, samples(root, count));
    }
  }
}

// Around a ring, two messages ahead of the receiver, which is what send() may be. The length
// differs from message to message, so that a confused order is an error.
inline void check_ordered_sends(Communicator& group, int64_t base) {
  if (group.size() == 1) return;
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  constexpr int kMessages = 30;
  const auto send = [&](int i) {
    if (i >= kMessages) return;
    Floats x = samples(100 * group.rank() + i, base + i);
    group.send(tensor(x, 1), next);
    std::fill(x.begin(), x.end(), -1.0f);  // send() has taken its copy
  };
  send(0);
  send(1);
  for (int i = 0; i < kMessages; ++i) {
    Floats x(base + i);
    group.recv(tensor(x, 1), previous);
    expect_same_bits(x, samples(100 * previous + i, base + i));
    send(i + 2);
  }
}

// More bytes than a transport moves in one message.
inline void check_large(Communicator& group) {
  if (group.size() == 1) return;
  constexpr int64_t kCount = (9 << 20) + 3;  // 36 MiB
  Floats x = samples(7, kCount);
  if (group.rank() == 0) {
    group.send(tensor(x, 1), 1);
  } else if (group.rank() == 1) {
    Floats y(kCount);
    group.recv(tensor(y, 1), 0);
    expect_same_bits(y, x);
  }
}

// How long after cancel() `blocked` ends with kCancelled and the reason.
template <class Blocked>
std::chrono::milliseconds cancel_delay(Cancellation& cancellation, Blocked blocked) {
  std::chrono::steady_clock::time_point cancelled_at;
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    cancelled_at = std::chrono::steady_clock::now();
    cancellation.cancel("rank 9 is dead");
  });
  try {
    blocked();
    ADD_FAILURE() << "the wait ended without an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCancelled);
    EXPECT_STREQ(error.what(), "rank 9 is dead");
  }
  const auto ended_at = std::chrono::steady_clock::now();
  other.join();
  cancellation.reset();
  return std::chrono::duration_cast<std::chrono::milliseconds>(ended_at - cancelled_at);
}

constexpr std::chrono::milliseconds kCancelDelayMax{50};

}  // namespace trireme

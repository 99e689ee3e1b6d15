// SPDX-License-Identifier: Apache-2.0
#include "worker/measure_speeds.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "kernels/base/error.h"
#include "topology/measured_speeds.h"
#include "worker/comm/channel.h"
#include "worker/comm/device_transport.h"
#include "worker/comm/local.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

SpeedTask task_of(const std::vector<std::vector<int>>& groups) {
  SpeedTask task;
  task.set_isa("auto");
  task.set_threads(1);
  task.set_sharers(3);
  task.set_memory_bytes(kGiB / 4);  // so 32 MiB are read
  task.set_timeout_ms(20000);
  int tag = 0;
  for (const std::vector<int>& ranks : groups) {
    SpeedGroup& group = *task.add_groups();
    for (const int rank : ranks) group.add_ranks(rank);
    group.set_tag(tag);
    tag += 2;
  }
  return task;
}

SpeedReport measure(const std::shared_ptr<LocalHub>& hub, int rank, const SpeedTask& task) {
  const auto channel = make_local_worker_channel(hub, rank);
  const auto transport = make_local_transport(hub, rank, channel->cancellation());
  const auto make_tensors = [&](Backend& device) {
    DeviceTransportOptions options;
    options.rank = rank;
    return make_device_transport(*transport, device, options);
  };
  return measure_speeds(task, rank, *transport, make_tensors, channel->cancellation());
}

TEST(MeasureSpeeds, OfEveryRankAndItsGroups) {
  const auto hub = make_local_hub(3);
  std::vector<SpeedReport> reports(4);
  std::vector<std::thread> threads;
  for (const int rank : {1, 2, 3}) {
    threads.emplace_back([&, rank] {
      reports[static_cast<size_t>(rank)] =
          measure(hub, rank, rank == 3 ? task_of({{1, 2, 3}}) : task_of({{1, 2, 3}, {1, 2}}));
    });
  }
  for (std::thread& thread : threads) thread.join();
  // Rank 1 reports of both groups, in the order of the list.
  std::swap(*reports[1].mutable_rows(0), *reports[1].mutable_rows(1));
  EXPECT_TRUE(is_sound(reports[1], {2, 3})) << reports[1].DebugString();
  EXPECT_TRUE(is_sound(reports[2], {})) << reports[2].DebugString();
  EXPECT_TRUE(is_sound(reports[3], {})) << reports[3].DebugString();
  for (const AllReduceRow& row : reports[1].rows()) {
    EXPECT_TRUE(row.measured());
    double last = 0;
    for (const AllReduceSample& sample : row.samples()) {
      EXPECT_GE(sample.seconds(), last);
      last = sample.seconds();
    }
  }
}

TEST(MeasureSpeeds, AMemberThatIsSilent) {
  const auto hub = make_local_hub(2);
  SpeedTask task = task_of({{1, 2}});
  task.set_timeout_ms(100);
  try {
    measure(hub, 1, task);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kDeadlineExceeded);
  }
}

// Matrices of a GPU leave room for their products and for the code that the driver loads.
TEST(MeasureSpeeds, AGpuThatOthersFill) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  const auto bytes = [](uint64_t free) {
    return gpu_matrix_bytes(80 * kGiB, DeviceMemory{free, 80 * kGiB});
  };
  EXPECT_EQ(bytes(79 * kGiB), int64_t{1} << 30);
  EXPECT_EQ(gpu_matrix_bytes(8 * kGiB, std::nullopt), int64_t{1} << 30);
  EXPECT_EQ(gpu_matrix_bytes(UINT64_MAX, DeviceMemory{79 * kGiB, 80 * kGiB}), int64_t{1} << 30);
  EXPECT_EQ(gpu_matrix_bytes(0, DeviceMemory{79 * kGiB, 80 * kGiB}), int64_t{32} << 20);
  for (uint64_t free = 72 * kMiB; free < 4 * kGiB; free += 10 * kMiB) {
    const auto weight = static_cast<uint64_t>(bytes(free));
    EXPECT_GE(weight, 4 * kMiB);
    EXPECT_LE(weight / 4 * 7 + 64 * kMiB, free);
  }
  for (const uint64_t free : {uint64_t{0}, kMiB, 70 * kMiB}) {
    try {
      bytes(free);
      ADD_FAILURE() << free;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kResourceExhausted);
      EXPECT_NE(std::string(error.what()).find("of its 80.0 GiB are free"), std::string::npos);
    }
  }
}

// As a first rank could say it.
TEST(MeasureSpeeds, AFirstRankThatCountsInNan) {
  const auto hub = make_local_hub(2);
  std::thread first([&] {
    const auto channel = make_local_worker_channel(hub, 1);
    const auto transport = make_local_transport(hub, 1, channel->cancellation());
    const auto group = transport->make_group(std::vector<int>{1, 2}, 0);
    float values[2048] = {};
    group->all_reduce_sum({values, DType::kF32, 1, 2048});
    group->all_reduce_sum({values, DType::kF32, 1, 2048});
    float passes = NAN;
    group->broadcast({&passes, DType::kF32, 1, 1}, 0);
  });
  const auto channel = make_local_worker_channel(hub, 2);
  const auto transport = make_local_transport(hub, 2, channel->cancellation());
  const auto group = transport->make_group(std::vector<int>{1, 2}, 0);
  const auto backend = make_backend({});
  channel->cancellation().set_deadline(std::chrono::steady_clock::now() + std::chrono::seconds(5));
  try {
    measure_all_reduce(*group, *group, *backend);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInvalidArgument) << error.what();
  }
  first.join();
}

TEST(MeasureSpeeds, TasksThatCannotBe) {
  std::vector<int> many(65);
  for (int i = 0; i < 65; ++i) many[static_cast<size_t>(i)] = i + 1;
  for (const auto& ranks : {std::vector<int>{2, 3}, {1, 1}, {1}, {}, many}) {
    EXPECT_THROW(measure(make_local_hub(2), 1, task_of({ranks})), Error);
  }
  for (const int threads : {0, -1, 1 << 20}) {
    SpeedTask task = task_of({});
    task.set_threads(threads);
    EXPECT_THROW(measure(make_local_hub(2), 1, task), Error);
  }
}

}  // namespace
}  // namespace trireme

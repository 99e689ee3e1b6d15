// SPDX-License-Identifier: Apache-2.0
#include "worker/measure_speeds.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "topology/topology.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Of each measurement, about.
constexpr double kMemorySeconds = 0.06;
constexpr double kMatmulSeconds = 0.02;
constexpr double kShort = 2e-3;  // below, a larger matrix says more
constexpr double kReduceSeconds = 0.004;
constexpr double kThrottledSeconds = 0.25;  // of a rank with a quota: its periods are 0.1 s mostly
constexpr double kSlowReduce = 0.05;        // larger messages are left out
constexpr int kMostPasses = 32;
constexpr int64_t kLeastBytes = int64_t{32} << 20, kMostBytes = int64_t{256} << 20;
constexpr int64_t kLeastGpuBytes = int64_t{4} << 20, kMostGpuBytes = int64_t{1} << 30;
constexpr uint64_t kGpuCodeBytes = uint64_t{64} << 20;  // that the driver loads for first products
constexpr int32_t kMostRanks = 64;                      // of a group
constexpr int kTogether = 8;  // products of a GPU that are waited for at once

template <typename Action>
double seconds_of(const Action& action) {
  const auto start = steady_clock::now();
  action();
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

// Of one pass, with all that stops it.
template <typename Action>
double average_seconds(const Cancellation& cancellation, const Action& action) {
  action();  // whatever a first pass must set up
  int passes = 0;
  double all = 0;
  for (; all < kThrottledSeconds; ++passes) {
    cancellation.throw_if_cancelled();
    all += seconds_of(action);
  }
  return all / passes;
}

// Of one pass: the fastest of as many as fit in `budget`, since whatever else runs on the machine
// only adds.
template <typename Action>
double fastest_seconds(double budget, const Cancellation& cancellation, const Action& action) {
  constexpr int kFewPasses = 3;  // beyond the budget, unless the machine is far too slow for them
  double all = seconds_of(action);  // whatever a first pass must set up is in it
  double fastest = all;
  for (int pass = 1; pass < kMostPasses; ++pass) {
    if (all > (pass < kFewPasses ? 3 : 1) * budget) break;
    cancellation.throw_if_cancelled();
    const double seconds = seconds_of(action);
    all += seconds;
    fastest = std::min(fastest, seconds);
  }
  return fastest;
}

// Pages that nobody wrote are all one page of zeros, and would be read from a cache; and a GPU's
// matrix units run faster on equal numbers, which need less power, than on a model's.
void fill(Backend& backend, const Buffer& buffer) {
  static const std::vector<uint16_t> pattern = [] {
    std::vector<uint16_t> values(size_t{1} << 19);
    std::mt19937 random(1);
    for (uint16_t& value : values) value = static_cast<uint16_t>(0x3c00 | (random() & 0x80ff));
    return values;
  }();
  const size_t piece = pattern.size() * sizeof pattern[0];
  for (size_t offset = 0; offset < buffer.bytes(); offset += piece) {
    backend.upload(static_cast<std::byte*>(buffer.data()) + offset, pattern.data(),
                   std::min(piece, buffer.bytes() - offset));
  }
  backend.synchronize();
}

// Seconds of `tokens` rows through a matrix [n, k] of bf16. budget: 0 for a rank with a quota. Of a
// GPU several products are waited for at once, as those of a step are.
double matmul_seconds(Backend& backend, const Cancellation& cancellation, int64_t tokens, int64_t n,
                      int64_t k, double budget) {
  const Weight weight = backend.make_weight(DType::kBF16, n, k);
  fill(backend, weight.storage);
  const DType type = activation_dtype(weight.dtype);
  const Buffer in = backend.allocate(static_cast<size_t>(tokens * k * element_size(type)));
  const Buffer out = backend.allocate(static_cast<size_t>(tokens * n) * sizeof(float));
  fill(backend, in);
  const Tensor x(in.data(), type, tokens, k), y(out.data(), DType::kF32, tokens, n);
  const int together = backend.in_host_memory() ? 1 : kTogether;
  const auto pass = [&] {
    for (int i = 0; i < together; ++i) backend.matmul(y, x, weight, nullptr);
    backend.synchronize();
  };
  const double seconds = budget > 0 ? fastest_seconds(budget, cancellation, pass)
                                    : average_seconds(cancellation, pass);
  return seconds / together;
}

// Far above this rank's share of the last cache, and a small part of its memory.
int64_t matrix_bytes(const SpeedTask& task) {
  const int64_t cache = std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), 0L);
  const int64_t wanted =
      std::clamp(2 * cache / std::max(task.sharers(), 1), kLeastBytes, kMostBytes);
  return std::clamp(static_cast<int64_t>(task.memory_bytes() / 8), int64_t{1} << 20, wanted);
}

double memory_bandwidth(Backend& backend, const Cancellation& cancellation, int64_t bytes,
                        bool throttled) {
  constexpr int64_t kDepth = 4096;
  const int64_t rows = std::max<int64_t>(bytes / 2 / kDepth, 32);
  const double seconds =
      matmul_seconds(backend, cancellation, 1, rows, kDepth, throttled ? 0 : kMemorySeconds);
  return double(rows * kDepth * 2) / std::max(seconds, 1e-9);
}

// Of a GPU, whose caches hold some 100 MB: matrices grow until one takes long enough.
SpeedReport gpu_speeds(Backend& backend, const Cancellation& cancellation, uint64_t memory_bytes) {
  SpeedReport report;
  const int64_t most = gpu_matrix_bytes(memory_bytes, backend.device_memory());
  for (int64_t bytes = kLeastGpuBytes; bytes <= most; bytes *= 8) {
    const double bandwidth = memory_bandwidth(backend, cancellation, bytes, false);
    report.set_memory_bandwidth_bytes_per_s(bandwidth);
    if (double(bytes) / bandwidth > kShort) break;
  }
  for (int64_t side = 512; side <= 8192 && 2 * side * side <= most; side *= 2) {
    const int64_t tokens = std::clamp<int64_t>(side / 4, 128, 2048);
    const double seconds =
        matmul_seconds(backend, cancellation, tokens, side, side, kMatmulSeconds);
    report.set_flops_16bit_per_s(2.0 * double(tokens * side * side) / std::max(seconds, 1e-9));
    if (seconds > kShort) break;
  }
  return report;
}

double matmul_flops(Backend& backend, const Cancellation& cancellation, bool throttled) {
  constexpr int64_t kTokens = 128;
  double flops = 0;
  for (const int64_t side : {1024, 2048}) {
    const double seconds =
        matmul_seconds(backend, cancellation, kTokens, side, side, throttled ? 0 : kMatmulSeconds);
    flops = 2.0 * double(kTokens * side * side) / std::max(seconds, 1e-9);
    if (seconds > kShort) break;
  }
  return flops;
}

// The group's first rank decides for all.
int agree(Communicator& group, int number) {
  float value = static_cast<float>(number);
  group.broadcast({&value, DType::kF32, 1, 1}, 0);
  if (!(value >= -1 && value <= kMostPasses)) {
    throw Error(Code::kInvalidArgument,
                "cannot measure all-reduces: the group's first rank asks for " +
                    std::to_string(value) + " passes, the most are " + std::to_string(kMostPasses));
  }
  return static_cast<int>(value);
}

void check(const SpeedTask& task, int rank) {
  bool sound = task.device() == DEVICE_KIND_CUDA ? task.device_index() >= 0
                                                 : task.threads() >= 1 && task.threads() <= 4096;
  for (const SpeedGroup& group : task.groups()) {
    sound = sound && group.ranks_size() >= 2 && group.ranks_size() <= kMostRanks &&
            std::count(group.ranks().begin(), group.ranks().end(), rank) == 1;
  }
  if (sound) return;
  throw Error(Code::kInvalidArgument,
              "cannot measure: the coordinator asks for " + std::to_string(task.threads()) +
                  " threads and " + std::to_string(task.groups_size()) +
                  " groups, one of which is none of rank " + std::to_string(rank));
}

}  // namespace

int64_t gpu_matrix_bytes(uint64_t memory_bytes, const std::optional<DeviceMemory>& memory) {
  const int64_t wanted =
      std::clamp(static_cast<int64_t>(memory_bytes / 8), kLeastBytes, kMostGpuBytes);
  if (!memory) return wanted;
  // A product's input and output are three quarters of its matrix at most.
  const uint64_t room = (memory->free_bytes - std::min(memory->free_bytes, kGpuCodeBytes)) / 7 * 4;
  if (room >= static_cast<uint64_t>(wanted)) return wanted;
  const std::string found = format_bytes(memory->free_bytes) + " of its " +
                            format_bytes(memory->total_bytes) + " are free";
  if (room < static_cast<uint64_t>(kLeastGpuBytes)) {
    throw Error(Code::kResourceExhausted,
                "cannot measure the GPU: " + found + ", needed are " +
                    format_bytes(kGpuCodeBytes + static_cast<uint64_t>(2 * kLeastGpuBytes)) +
                    "; end the programs that hold the rest, or choose other GPUs by "
                    "CUDA_VISIBLE_DEVICES");
  }
  log_warn("the GPU is measured with matrices of " + format_bytes(room) + " at most: " + found +
           "; its caches may make it seem faster than it is");
  return static_cast<int64_t>(room);
}

AllReduceRow measure_all_reduce(Communicator& tensors, Communicator& host, Backend& backend) {
  AllReduceRow row;
  row.set_tp(tensors.size());
  row.set_measured(true);
  double least = 0;
  for (const int64_t bytes : {8 << 10, 128 << 10, 2 << 20}) {
    const Buffer values = backend.allocate(static_cast<size_t>(bytes));
    const Tensor x(values.data(), DType::kF32, 1, bytes / int64_t{sizeof(float)});
    const auto reduce = [&] {
      tensors.all_reduce_sum(x);
      tensors.settle();
      backend.synchronize();
    };
    if (least == 0) reduce();  // whatever a first message must set up
    double fastest = seconds_of(reduce);
    const double fitting = kReduceSeconds / std::max(fastest, 1e-7);
    const bool last = fastest > kSlowReduce;
    const int more = agree(host, last ? -1 : static_cast<int>(std::min(fitting, 32.0)));
    for (int i = 0; i < more; ++i) fastest = std::min(fastest, seconds_of(reduce));
    AllReduceSample& sample = *row.add_samples();
    sample.set_bytes(static_cast<uint64_t>(bytes));
    least = std::max({fastest, least, 1e-9});  // more bytes never take less
    sample.set_seconds(least);
    if (more < 0) break;
  }
  const AllReduceSample& last = *row.samples().rbegin();
  const double alpha = row.samples(0).seconds();
  row.set_alpha_s(alpha);
  const double beyond = std::max(last.seconds() - alpha, last.seconds() / 16);
  const double moved = double(last.bytes()) * 2 * (tensors.size() - 1) / tensors.size();
  row.set_bus_bytes_per_s(moved / beyond);
  agree(host, 0);  // nobody leaves while another still reads from it
  return row;
}

SpeedReport measure_speeds(const SpeedTask& task, int rank, Transport& host,
                           const MakeTransport& make_tensors, Cancellation& cancellation) {
  check(task, rank);
  SpeedReport report;
  BackendOptions options;
  options.threads = task.threads();
  options.isa = task.isa();
  options.device_index = task.device_index();
  if (task.device() == DEVICE_KIND_CUDA) options.device = "cuda";
  const std::unique_ptr<Backend> backend = make_backend(options);
  if (task.device() == DEVICE_KIND_CUDA) {
    report = gpu_speeds(*backend, cancellation, task.memory_bytes());
  } else {
    report.set_memory_bandwidth_bytes_per_s(
        memory_bandwidth(*backend, cancellation, matrix_bytes(task), task.throttled()));
    report.set_flops_16bit_per_s(matmul_flops(*backend, cancellation, task.throttled()));
  }
  cancellation.set_deadline(steady_clock::now() + milliseconds(std::max(task.timeout_ms(), 1)));
  try {
    const std::unique_ptr<Transport> tensors = make_tensors(*backend);
    for (const SpeedGroup& members : task.groups()) {
      const std::vector<int> ranks(members.ranks().begin(), members.ranks().end());
      const auto group = host.make_group(ranks, members.tag());
      const auto devices = tensors->make_group(ranks, members.tag() + 1);
      const AllReduceRow row = measure_all_reduce(*devices, *group, *backend);
      if (group->rank() == 0) *report.add_rows() = row;
    }
  } catch (const Error&) {
    cancellation.no_deadline();
    throw;
  }
  cancellation.no_deadline();
  return report;
}

}  // namespace trireme

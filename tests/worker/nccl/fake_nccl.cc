// SPDX-License-Identifier: Apache-2.0
// Stands for libnccl.so.2 in tests: ranks are threads of this process, and "device" memory is what
// they can read. As with non-blocking communicators, a call returns ncclInProgress, and is done
// when ncclCommGetAsyncError says so; unlike NCCL's, its data have arrived then. On a stream that
// is recorded it has become part of the graph by then, and waits for other ranks when that runs, on
// the stream's thread. A communicator that is aborted ends such waits and stays until no graph
// holds it; within a group of calls it does the second at the group's end. Sums are in rank order.
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/cuda_emulation/graphs.h"

namespace {

using trireme::cuda::emulation::Stream;
using Values = std::vector<float>;

// What the members of a communicator share. One mutex for all of them.
struct Group {
  explicit Group(int size_in) : size(size_in), joined(static_cast<size_t>(size_in)) {}
  const int size;
  std::vector<bool> joined;
  std::map<std::pair<int, int>, std::deque<Values>> messages;  // by sender and receiver
  struct Sum {
    std::vector<Values> parts;  // by rank
    int taken = 0;
  };
  std::map<uint64_t, Sum> sums;  // by number
};

std::mutex mutex;
std::map<std::string, std::weak_ptr<Group>> groups;  // by key
int next_key = 0;

std::atomic<int> error{ncclSuccess};
std::atomic<int> version{NCCL_VERSION_CODE};
std::atomic<int> num_aborts{0};
std::atomic<int> num_stuck{0};
std::atomic<bool> held{false};

thread_local int group_depth = 0;
thread_local std::vector<ncclComm*> aborted;  // by this thread, in its group of calls

// Tried, with the mutex, until it returns true: it is done then.
using Operation = std::function<bool()>;

}  // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank = 0;
  uint64_t num_sums = 0;
  std::deque<Operation> pending;
  std::atomic<bool> ended{false};
  std::atomic<int> graphs{0};  // that hold it

  bool idle() {
    const std::lock_guard lock(mutex);
    if (held) return false;
    while (!pending.empty() && pending.front()()) pending.pop_front();
    return pending.empty();
  }
  ncclResult_t add(Operation operation) {
    pending.push_back(std::move(operation));
    return group_depth > 0 ? ncclSuccess : ncclInProgress;
  }
  // Behind what the stream does; or as a part of what it records, where the operation is begun anew
  // each time that the graph runs.
  ncclResult_t add(cudaStream_t handle, Operation operation) {
    auto* const stream = reinterpret_cast<Stream*>(handle);
    if (!stream->recorded()) {
      return add([stream, operation]() mutable { return !stream->busy() && operation(); });
    }
    return add([this, stream, operation] {
      ++graphs;
      stream->keep(std::shared_ptr<void>(nullptr, [this](void*) { --graphs; }));
      stream->perform([this, operation] { run(operation); });
      return true;
    });
  }

 private:
  void run(Operation operation) {
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      {
        const std::lock_guard lock(mutex);
        if (ended || operation()) return;
      }
      if (std::chrono::steady_clock::now() - begin > std::chrono::minutes(1)) {
        std::fputs("the fake NCCL: an operation of a graph does not end\n", stderr);
        std::abort();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }
};

namespace {

// As NCCL does it waits for what holds them; what it waits for too long is left behind.
void reclaim() {
  for (ncclComm* const comm : std::exchange(aborted, {})) {
    const auto begin = std::chrono::steady_clock::now();
    while (comm->graphs > 0 && std::chrono::steady_clock::now() - begin < std::chrono::seconds(5)) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    if (comm->graphs > 0) {
      ++num_stuck;
    } else {
      delete comm;
    }
  }
}

bool take(ncclComm* self, int from, float* to, size_t count) {
  auto& queue = self->group->messages[{from, self->rank}];
  if (queue.empty()) return false;
  if (queue.front().size() != count) error = ncclInvalidArgument;
  std::memcpy(to, queue.front().data(), queue.front().size() * sizeof(float));
  queue.pop_front();
  return true;
}

bool give(ncclComm* self, int to, const float* from, size_t count) {
  self->group->messages[{self->rank, to}].emplace_back(from, from + count);
  return true;
}

}  // namespace

extern "C" {

// ---- what tests set and ask ----
void fake_nccl_set_error(int code) { error = code; }
void fake_nccl_set_version(int code) { version = code; }
int fake_nccl_num_aborts() { return num_aborts; }
// Whether calls stay in progress.
void fake_nccl_hold(bool value) { held = value; }
// Aborted ones that graphs still held after a while: NCCL would wait for ever.
int fake_nccl_num_stuck() { return num_stuck; }

ncclResult_t ncclGetVersion(int* number) {
  const char* const told = std::getenv("FAKE_NCCL_VERSION");
  *number = told != nullptr ? std::atoi(told) : version.load();
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(mutex);
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id->internal, &++next_key, sizeof(next_key));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0 || rank < 0 || rank >= size) {
    return ncclInvalidArgument;
  }
  const std::lock_guard lock(mutex);
  if (std::getenv("FAKE_NCCL_TELL") != nullptr) {
    // Once for a process, as NCCL does.
    static const char* const interface = std::getenv("NCCL_SOCKET_IFNAME");
    static const std::string found = interface == nullptr ? "?" : interface;
    std::fprintf(stderr, "the fake NCCL connects by %s\n", found.c_str());
  }
  std::weak_ptr<Group>& known = groups[std::string(id.internal, sizeof(id.internal))];
  std::shared_ptr<Group> group = known.lock();
  if (group == nullptr) known = group = std::make_shared<Group>(size);
  if (group->size != size || group->joined[static_cast<size_t>(rank)]) return ncclInvalidUsage;
  group->joined[static_cast<size_t>(rank)] = true;
  *comm = new ncclComm;
  (*comm)->group = group;
  (*comm)->rank = rank;
  return (*comm)->add([group] {
    return std::find(group->joined.begin(), group->joined.end(), false) == group->joined.end();
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  *state = error != ncclSuccess ? static_cast<ncclResult_t>(error.load())
           : comm->idle()       ? ncclSuccess
                                : ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ++num_aborts;
  comm->ended = true;
  aborted.push_back(comm);
  if (group_depth == 0) reclaim();
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclFloat32 || operation != ncclSum) return ncclInvalidArgument;
  const auto* values = static_cast<const float*>(from);
  return comm->add(stream, [comm, values, to, count, number = std::optional<uint64_t>{}]() mutable {
    if (!number) {
      number = comm->num_sums++;
      auto& own = comm->group->sums[*number].parts;
      own.resize(static_cast<size_t>(comm->group->size));
      own[static_cast<size_t>(comm->rank)].assign(values, values + count);
    }
    auto& [parts, taken] = comm->group->sums[*number];
    for (const Values& part : parts) {
      if (part.size() != count) return false;
    }
    auto* sum = static_cast<float*>(to);
    std::copy(parts[0].begin(), parts[0].end(), sum);
    for (size_t r = 1; r < parts.size(); ++r) {
      for (size_t i = 0; i < count; ++i) sum[i] += parts[r][i];
    }
    if (++taken == comm->group->size) comm->group->sums.erase(*number);
    return true;
  });
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclFloat32) return ncclInvalidArgument;
  return comm->add(stream, [comm, from, to, count, root] {
    if (comm->rank != root) return take(comm, root, static_cast<float*>(to), count);
    for (int r = 0; r < comm->group->size; ++r) {
      if (r != root) give(comm, r, static_cast<const float*>(from), count);
    }
    return true;
  });
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int to, ncclComm_t comm,
                      cudaStream_t stream) {
  if (type != ncclFloat32) return ncclInvalidArgument;
  return comm->add(stream, [comm, from, count, to] {
    return give(comm, to, static_cast<const float*>(from), count);
  });
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int from, ncclComm_t comm,
                      cudaStream_t stream) {
  if (type != ncclFloat32) return ncclInvalidArgument;
  return comm->add(
      stream, [comm, to, count, from] { return take(comm, from, static_cast<float*>(to), count); });
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) return ncclInvalidUsage;
  if (--group_depth > 0) return ncclSuccess;
  if (!aborted.empty()) {
    reclaim();
    return ncclSuccess;
  }
  return ncclInProgress;
}

const char* ncclGetErrorString(ncclResult_t) { return "an error of the fake"; }
const char* ncclGetLastError(ncclComm_t) { return "no more is known"; }

}  // extern "C"

// SPDX-License-Identifier: Apache-2.0
// Communicators are non-blocking (ncclConfig_t::blocking = 0): no call of NCCL's waits for another
// rank. What is in progress is polled by QueuedWork, which asks for the errors of all groups; when
// one fails all are aborted, which ends their kernels. A call is queued, or recorded, by a thread
// of NCCL's while it is in progress.
#include "worker/comm/nccl.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <numeric>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_stream.h"
#include "topology/nccl_settings.h"

namespace trireme {
namespace {

using cuda::cuda_check;

// Older ones say that a send or recv of a non-blocking communicator is queued before it is.
constexpr int kOldestVersion = 22400;
// Of older ones what is recorded and what is not may race.
constexpr int kOldestToRecord = 22703;
constexpr std::chrono::milliseconds kRasTimeout{2000};

static_assert(sizeof(ncclUniqueId) == Nccl::kKeyBytes);

// The functions of the library that are used.
struct Library {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) init;
  decltype(&ncclCommGetAsyncError) async_error;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclGetErrorString) error_string;
  decltype(&ncclGetLastError) last_error;
  int version = 0;
};

template <typename Function>
void find(void* handle, const std::string& file, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function == nullptr) {
    throw Error(Code::kFailedPrecondition,
                "cannot use " + file + ": it has no " + name + "; install NCCL 2.24 or newer");
  }
}

Library open_library(const std::string& file) {
  // Stays open: its threads may run until the process ends.
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw Error(Code::kFailedPrecondition,
                "cannot use NCCL: " + std::string(reason != nullptr ? reason : "no reason given") +
                    "; install it, or name its folder in LD_LIBRARY_PATH");
  }
  Library library{};
  find(handle, file, "ncclGetVersion", library.get_version);
  find(handle, file, "ncclGetUniqueId", library.get_unique_id);
  find(handle, file, "ncclCommInitRankConfig", library.init);
  find(handle, file, "ncclCommGetAsyncError", library.async_error);
  find(handle, file, "ncclCommAbort", library.abort);
  find(handle, file, "ncclAllReduce", library.all_reduce);
  find(handle, file, "ncclBroadcast", library.broadcast);
  find(handle, file, "ncclSend", library.send);
  find(handle, file, "ncclRecv", library.recv);
  find(handle, file, "ncclGroupStart", library.group_start);
  find(handle, file, "ncclGroupEnd", library.group_end);
  find(handle, file, "ncclGetErrorString", library.error_string);
  find(handle, file, "ncclGetLastError", library.last_error);
  if (library.get_version(&library.version) != ncclSuccess || library.version < kOldestVersion) {
    throw Error(Code::kFailedPrecondition, "cannot use " + file + ": its version is " +
                                               std::to_string(library.version) + ", needed is " +
                                               std::to_string(kOldestVersion) + " or newer");
  }
  return library;
}

// Why sums of this rank cannot be part of recordings; empty: they can. The others may record
// theirs.
std::string recording_fault(int version) {
  if (version < kOldestToRecord) return "that needs NCCL 2.27.3 or newer";
  for (const auto& [name, value] : kNcclForRecordings) {
    const char* const found = std::getenv(name);
    if (found == nullptr || std::string(found) != value) {
      return std::string(name) + " is not " + value;
    }
  }
  return "";
}

// All groups of a rank.
class Groups : private QueuedWork::Part {
 public:
  Groups(const Library& library, const NcclOptions& options, Backend& backend,
         std::shared_ptr<QueuedWork> work)
      : library_(library),
        options_(options),
        backend_(backend),
        stream_(cuda::stream_of(backend)),
        recording_fault_(recording_fault(library.version)),
        work_(std::move(work)) {
    work_->add(*this);
  }
  ~Groups() override {
    work_->remove(*this);
    end();
  }
  Groups(const Groups&) = delete;

  const Library& library() const { return library_; }
  cudaStream_t stream() const { return stream_; }
  QueuedWork& work() const { return *work_; }

  void add(ncclComm_t group) { groups_.push_back(group); }
  // Waits for nobody: what had to arrive was waited for by settle(). If it was not, after an error,
  // this group's kernels may stand behind another's, and all end.
  void remove(ncclComm_t group) {
    if (!work_->settled()) work_->end();
    if (std::erase(groups_, group) == 0) return;
    backend_.drop_recordings();  // NCCL waits until none holds the group
    library_.abort(group);
  }

  // tell: that they cannot, once.
  bool can_record(bool tell) {
    if (recording_fault_.empty()) return true;
    if (tell && !std::exchange(told_fault_, true)) {
      log_info("steps of decode that sum by NCCL are not recorded as CUDA graphs: " +
               recording_fault_);
    }
    return false;
  }

  // Until `code`, of a call for `group`, is no longer ncclInProgress: the call has then been
  // queued.
  void await(ncclResult_t code, ncclComm_t group, std::span<const int> peers, const char* action) {
    under_way_ = group;
    work_->queued(peers);
    work_->wait(peers, [&] {
      if (code == ncclInProgress) check(library_.async_error(group, &code), action);
      if (code != ncclInProgress) check(code, action);
      return code == ncclSuccess;
    });
    under_way_ = nullptr;
  }

  void check(ncclResult_t code, const char* action) {
    if (code == ncclSuccess || code == ncclInProgress) return;
    const char* detail = library_.last_error(nullptr);
    std::string text =
        std::string("cannot ") + action + " with NCCL: " + library_.error_string(code);
    if (detail != nullptr && *detail != '\0') text += std::string(" (") + detail + ")";
    // Before the abort: a group that is gone has nothing to tell.
    const std::string view = read_view();
    work_->end();
    work_->cancellation().throw_if_cancelled();  // whoever cancels knows why
    if (!view.empty()) log_warn("NCCL's own view of the job: " + view);
    const std::string faults = nccl_ras_faults(view);
    if (!faults.empty()) text += "; its RAS says: " + faults;
    // Where NCCL blames the system or another rank, that one or the way to it has gone.
    const bool gone = code == ncclRemoteError || code == ncclSystemError;
    throw Error(gone ? Code::kUnavailable : Code::kInternal,
                text + "; NCCL_DEBUG=WARN makes it say more");
  }

 private:
  void look(std::span<const int> peers, QueuedWork::Duration lasted) override {
    for (const ncclComm_t group : groups_) {
      ncclResult_t state = ncclSuccess;
      check(library_.async_error(group, &state), "ask for errors");
      check(state, "exchange tensors");
    }
    if (!groups_.empty() && lasted >= options_.hang) tell_hang(peers);
  }

  // What RAS says, unless a Cancellation tells earlier what has happened.
  std::string read_view() const {
    return read_nccl_ras(options_.ras, kRasTimeout,
                         [this] { return work_->cancellation().cancelled(); });
  }

  // Once in a micro-batch: before the first one others may load for minutes.
  void tell_hang(std::span<const int> peers) {
    const uint64_t batch = work_->progress()->heartbeat().current();
    if (batch == 0 || batch == hung_) return;
    hung_ = batch;
    std::string text = peers.empty() ? "the GPU waits" : "the GPU waits for";
    for (const int peer : peers) text += " rank " + std::to_string(peer);
    text += ", " + std::to_string(options_.hang.count() / 1000) + " s by now";
    // Beside the wait, which must see a Cancellation at once.
    teller_ = std::async(std::launch::async, [this, text] {
      const std::string view = read_view();
      log_warn(text + (view.empty() ? "" : "; NCCL's own view of the job: " + view));
    });
  }

  // As one group of calls, in which abort() tells the kernels to end, and waits for its own thread
  // of the call that is under way; what waits for the kernels comes at the end of the group: they
  // may stand behind those of another communicator in the stream, and in recordings, each of which
  // NCCL waits for until it has gone. The call that is under way comes first: up to NCCL 2.26 its
  // thread would find those behind it in its queue.
  void end() override {
    if (groups_.empty()) return;
    const auto first = std::find(groups_.begin(), groups_.end(), under_way_);
    if (first != groups_.end()) std::iter_swap(groups_.begin(), first);
    library_.group_start();
    for (const ncclComm_t group : groups_) library_.abort(group);
    backend_.drop_recordings();
    library_.group_end();
    groups_.clear();
  }

  const Library library_;
  const NcclOptions options_;
  Backend& backend_;
  const cudaStream_t stream_;
  const std::string recording_fault_;
  bool told_fault_ = false;
  const std::shared_ptr<QueuedWork> work_;
  std::vector<ncclComm_t> groups_;
  ncclComm_t under_way_ = nullptr;  // whose call is not queued yet; only compared
  uint64_t hung_ = 0;               // the last micro-batch of which that was told
  std::future<void> teller_;        // by whom; last: it uses what stands above
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<Groups> groups, ncclComm_t group, std::span<const int> ranks,
                   int rank, Backend& backend)
      : Communicator(groups->work().progress()),
        groups_(std::move(groups)),
        group_(group),
        rank_(rank),
        size_(static_cast<int>(ranks.size())),
        backend_(backend) {
    for (const int other : ranks) {
      if (other != ranks[static_cast<size_t>(rank)]) peers_.push_back(other);
    }
  }
  ~NcclCommunicator() override { groups_->remove(group_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce_sum(Tensor x) override {
    const size_t count = count_of(x);
    if (count == 0) return;
    queue("sum a tensor", [&](const Library& nccl) {
      return nccl.all_reduce(x.data, x.data, count, ncclFloat32, ncclSum, group_,
                             groups_->stream());
    });
  }

  void broadcast(Tensor x, int root) override {
    const size_t count = count_of(x);
    if (count == 0) return;
    queue("broadcast a tensor", [&](const Library& nccl) {
      return nccl.broadcast(x.data, x.data, count, ncclFloat32, root, group_, groups_->stream());
    });
  }

  void send(Tensor x, int to) override {
    CHECK(to >= 0 && to < size_ && to != rank_, "send to a rank outside the group");
    const size_t count = count_of(x);
    if (count == 0) return;
    queue("send a tensor", [&](const Library& nccl) {
      return nccl.send(x.data, count, ncclFloat32, to, group_, groups_->stream());
    });
  }

  void recv(Tensor x, int from) override {
    CHECK(from >= 0 && from < size_ && from != rank_, "recv from a rank outside the group");
    const size_t count = count_of(x);
    if (count == 0) return;
    queue("receive a tensor", [&](const Library& nccl) {
      return nccl.recv(x.data, count, ncclFloat32, from, group_, groups_->stream());
    });
  }

  // Parts arrive one behind the other and are then laid beside each other.
  void gather_columns(Tensor all, Tensor mine, std::span<const int> cols, int root) override {
    CHECK(static_cast<int>(cols.size()) == size_, "gather_columns needs the columns of every rank");
    CHECK(mine.cols == cols[static_cast<size_t>(rank_)],
          "gather_columns got other columns than it was told");
    if (rank_ != root) return send(mine, root);
    const int64_t total = std::accumulate(cols.begin(), cols.end(), int64_t{0});
    CHECK(all.rows == mine.rows && all.cols == total, "gather_columns got a result of wrong shape");
    if (count_of(all) == 0) return;
    float* const parts = parts_of(static_cast<size_t>(all.rows * total));
    if (size_ > 1) {
      queue("gather a tensor",
            [&](const Library& nccl) { return receive_parts(nccl, parts, all.rows, cols); });
    }
    int64_t first = 0;
    for (int r = 0; r < size_; first += cols[static_cast<size_t>(r++)]) {
      const int64_t width = cols[static_cast<size_t>(r)];
      const void* from = r == rank_ ? mine.data : parts + all.rows * first;
      copy_columns(all.at(0, first), all.stride, from, width, all.rows);
    }
  }

  uint64_t reserve(const StagingBytes& bytes, int) override {
    if (bytes.gathered > 0) parts_of(bytes.gathered / sizeof(float));
    return parts_.empty() ? 0 : parts_.back().bytes();
  }

  void settle() override { groups_->work().settle(); }

  // By what NCCL does: an order of addition follows from the size and the group, recorded or not;
  // nothing is exchanged when one is recorded, so ranks need not record or replay at once.
  bool can_record(int64_t) const override { return size_ == 1 || groups_->can_record(rank_ == 0); }
  void replayed() override {
    groups_->work().require_life();
    groups_->work().queued(peers_);
  }

 private:
  static size_t count_of(const Tensor& x) {
    CHECK(x.dtype == DType::kF32 && (x.rows <= 1 || x.stride == x.cols),
          "a tensor that travels is fp32 and contiguous");
    return static_cast<size_t>(x.rows * x.cols);
  }

  template <class Start>
  void queue(const char* action, Start start) {
    groups_->work().require_life();
    const ncclResult_t code = start(groups_->library());
    groups_->check(code, action);
    groups_->await(code, group_, peers_, action);
  }

  ncclResult_t receive_parts(const Library& nccl, float* parts, int64_t rows,
                             std::span<const int> cols) {
    ncclResult_t worst = nccl.group_start();
    int64_t first = 0;
    for (int r = 0; r < size_; first += cols[static_cast<size_t>(r++)]) {
      const auto count = static_cast<size_t>(rows * cols[static_cast<size_t>(r)]);
      if (r == rank_ || count == 0) continue;
      const ncclResult_t code =
          nccl.recv(parts + rows * first, count, ncclFloat32, r, group_, groups_->stream());
      if (code != ncclSuccess && code != ncclInProgress) worst = code;
    }
    const ncclResult_t end = nccl.group_end();
    return worst != ncclSuccess ? worst : end;
  }

  void copy_columns(void* to, int64_t to_stride, const void* from, int64_t width, int64_t rows) {
    if (width == 0) return;
    const auto bytes = static_cast<size_t>(width) * sizeof(float);
    cuda_check(
        cudaMemcpy2DAsync(to, static_cast<size_t>(to_stride) * sizeof(float), from, bytes, bytes,
                          static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, groups_->stream()),
        "copy a gathered tensor");
  }

  // Grows to the largest size seen. What was there before stays until the end: to free it could
  // mean to wait for the stream, and so for a peer.
  float* parts_of(size_t values) {
    if (parts_.empty() || parts_.back().bytes() < values * sizeof(float)) {
      parts_.push_back(backend_.allocate(values * sizeof(float)));
    }
    return static_cast<float*>(parts_.back().data());
  }

  const std::shared_ptr<Groups> groups_;
  const ncclComm_t group_;
  const int rank_;
  const int size_;
  Backend& backend_;
  std::vector<int> peers_;  // world ranks
  std::vector<Buffer> parts_;
};

class OpenedNccl final : public Nccl {
 public:
  OpenedNccl(const NcclOptions& options, Backend& backend, std::shared_ptr<QueuedWork> work)
      : library_(open_library(options.library)),
        backend_(backend),
        groups_(std::make_shared<Groups>(library_, options, backend, std::move(work))) {}

  std::string make_key() override {
    ncclUniqueId id{};
    groups_->check(library_.get_unique_id(&id), "make the key of a group");
    return std::string(id.internal, sizeof(id.internal));
  }

  std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int rank,
                                           const std::string& key) override {
    CHECK(rank >= 0 && rank < static_cast<int>(ranks.size()), "a rank outside its group");
    if (key.size() != kKeyBytes) {
      throw Error(Code::kInvalidArgument, "cannot make a group of NCCL: its key has " +
                                              std::to_string(key.size()) + " bytes, needed are " +
                                              std::to_string(kKeyBytes));
    }
    ncclUniqueId id{};
    std::memcpy(id.internal, key.data(), key.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t group = nullptr;
    constexpr const char* kAction = "join a group";
    const ncclResult_t code =
        library_.init(&group, static_cast<int>(ranks.size()), id, rank, &config);
    if (group != nullptr) groups_->add(group);
    groups_->check(code, kAction);
    std::vector<int> peers(ranks.begin(), ranks.end());
    peers.erase(peers.begin() + rank);
    groups_->await(code, group, peers, kAction);
    return std::make_unique<NcclCommunicator>(groups_, group, ranks, rank, backend_);
  }

  int version() const override { return library_.version; }

 private:
  const Library library_;
  Backend& backend_;
  const std::shared_ptr<Groups> groups_;
};

}  // namespace

NcclVersion find_nccl(const std::string& library) {
  try {
    return {open_library(library).version, ""};
  } catch (const Error& error) {
    return {0, error.what()};
  }
}

std::unique_ptr<Nccl> make_nccl(Backend& backend, std::shared_ptr<QueuedWork> work,
                                const NcclOptions& options) {
  return std::make_unique<OpenedNccl>(options, backend, std::move(work));
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Groups need no MPI communicator of their own, whose making would wait for members that may be
// dead: all messages go from rank to rank in MPI_COMM_WORLD, and a group is known by its tag. So no
// call here depends on more than one other rank, and every wait looks at the Cancellation.
#include "worker/comm/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "kernels/base/brief_wait.h"
#include "kernels/base/bus_error.h"
#include "kernels/base/check.h"
#include "worker/comm/host_communicator.h"

namespace trireme {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

constexpr size_t kPieceBytes = 16 << 20;  // longer messages are split; MPI counts in int
constexpr size_t kBroadcastBytes = 64 << 10;
constexpr std::chrono::milliseconds kBrief{1};  // a wait looks very often for so long,
constexpr microseconds kNap{50};                // and then sleeps for so long at a time

void check_mpi(int code, const std::string& what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(Code::kUnavailable, "cannot " + what + ": " + std::string(text, length));
}

// A message on its way, in pieces.
struct Operation {
  std::vector<MPI_Request> pieces;  // MPI_REQUEST_NULL when done
  size_t pending = 0;               // pieces not done
  size_t bytes = 0;
  int peer = 0;  // world rank
  bool receive = false;
  std::string error;
  Code error_code = Code::kInternal;

  size_t piece_bytes(size_t piece) const {
    return std::min(kPieceBytes, bytes - piece * kPieceBytes);
  }

  // True if a piece more is done. An error is kept for the thread that waits.
  bool advance() {
    const size_t before = pending;
    for (size_t i = 0; i < pieces.size() && error.empty(); ++i) {
      if (pieces[i] == MPI_REQUEST_NULL) continue;
      int done = 0;
      MPI_Status status;
      const int code = MPI_Test(&pieces[i], &done, &status);
      if (code == MPI_SUCCESS && done == 0) break;  // they end in order, or nearly
      int count = static_cast<int>(piece_bytes(i));
      if (code == MPI_SUCCESS && receive) MPI_Get_count(&status, MPI_BYTE, &count);
      if (code != MPI_SUCCESS || count != static_cast<int>(piece_bytes(i))) describe(code, count);
      --pending;
    }
    return pending != before;
  }

  void describe(int code, int count) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    // Where MPI fails the peer, or the way to it, has gone; a wrong length is a bug.
    int error_class = MPI_SUCCESS;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &error_class);
    const bool wrong_length = error_class == MPI_SUCCESS || error_class == MPI_ERR_TRUNCATE;
    error_code = wrong_length ? Code::kInternal : Code::kUnavailable;
    if (code != MPI_SUCCESS) MPI_Error_string(code, text, &length);
    error = std::string("cannot ") + (receive ? "receive from" : "send to") + " rank " +
            std::to_string(peer) + " a message of " + std::to_string(bytes) + " bytes: " +
            (length > 0 ? std::string(text, length)
                        : "a piece of it has " + std::to_string(count) + " bytes");
  }
};

// All that MPI may still touch when the communicator is gone.
struct MpiGroup {
  std::vector<int> ranks;
  int tag = 0;
  std::shared_ptr<Staging> staging;

  std::mutex mutex;  // guards what follows: the worker's thread and the Pusher advance operations
  std::vector<Operation> operations;
  bool kept = false;

  // kStuck: MPI will never be done with a send.
  enum class Sends { kDone, kUnderWay, kStuck };
  Sends push() {
    const std::lock_guard lock(mutex);
    Sends all = Sends::kDone;
    if (kept) return all;
    for (Operation& operation : operations) {
      if (operation.receive || operation.pending == 0) continue;
      operation.advance();
      if (operation.pending == 0) continue;
      all = std::max(all, operation.error.empty() ? Sends::kUnderWay : Sends::kStuck);
    }
    return all;
  }
};

// There is no way to take back an operation that a dead peer will never complete: it keeps its
// request and its memory until the process exits.
void keep_until_exit(std::shared_ptr<MpiGroup> group) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::shared_ptr<MpiGroup>>;
  {
    const std::lock_guard lock(group->mutex);
    group->kept = true;
  }
  const std::lock_guard lock(mutex);
  kept->push_back(std::move(group));
}

// MPI moves a long message only while both ends are inside it, but a worker that has sent its
// activations sleeps on its doorbell until the next micro-batch. This thread tests for it as long
// as something is left to send, and else sleeps.
class Pusher {
 public:
  Pusher() : thread_([this] { run(); }) {}
  ~Pusher() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
    for (auto& group : groups_) keep_until_exit(std::move(group));
  }

  void watch(const std::shared_ptr<MpiGroup>& group) {
    const std::lock_guard lock(mutex_);
    if (std::find(groups_.begin(), groups_.end(), group) != groups_.end()) return;
    groups_.push_back(group);
    wake_.notify_one();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      std::erase_if(groups_, [](const auto& group) {
        const auto sends = group->push();
        if (sends == MpiGroup::Sends::kStuck) keep_until_exit(group);
        return sends != MpiGroup::Sends::kUnderWay;
      });
      if (groups_.empty()) {
        wake_.wait(lock, [&] { return stopping_ || !groups_.empty(); });
      } else {
        wake_.wait_for(lock, kNap, [&] { return stopping_; });
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;                          // guarded by mutex_
  std::vector<std::shared_ptr<MpiGroup>> groups_;  // guarded by mutex_
  std::thread thread_;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(MpiJob& job, Cancellation& cancellation, std::shared_ptr<Progress> progress)
      : job_(job), cancellation_(cancellation), progress_(std::move(progress)) {}
  std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int tag) override;

  const Cancellation& cancellation() const { return cancellation_; }
  const std::shared_ptr<Progress>& progress() const { return progress_; }
  Pusher& pusher() { return pusher_; }

  // A late message of an abandoned group must not be taken for one of a new group.
  void abandon(std::shared_ptr<MpiGroup> group) {
    abandoned_tags_.insert(group->tag);
    keep_until_exit(std::move(group));
    job_.abandon();
  }

 private:
  MpiJob& job_;
  Cancellation& cancellation_;
  const std::shared_ptr<Progress> progress_;
  std::set<int> abandoned_tags_;
  Pusher pusher_;
};

class MpiCommunicator final : public HostCommunicator {
 public:
  MpiCommunicator(MpiTransport& transport, std::shared_ptr<MpiGroup> group, int rank)
      : HostCommunicator(rank, static_cast<int>(group->ranks.size()), group->staging,
                         transport.progress()),
        transport_(transport),
        group_(std::move(group)) {
    group_->operations.resize(num_operations());
  }
  // What is still to be sent goes on, as the Pusher shares the group; but not what was cancelled,
  // which a rank that is gone may never take.
  ~MpiCommunicator() override {
    if (failed_ ||
        (transport_.cancellation().cancelled() && group_->push() != MpiGroup::Sends::kDone)) {
      transport_.abandon(group_);
    }
  }

 private:
  void start_send(int operation, std::span<const std::byte> bytes, int to) override {
    start(operation, bytes.size(), to, false, [&](size_t offset, int count, MPI_Request* request) {
      return MPI_Isend(bytes.data() + offset, count, MPI_BYTE, group_->ranks[to], group_->tag,
                       MPI_COMM_WORLD, request);
    });
  }

  void start_recv(int operation, std::span<std::byte> bytes, int from) override {
    start(operation, bytes.size(), from, true, [&](size_t offset, int count, MPI_Request* request) {
      return MPI_Irecv(bytes.data() + offset, count, MPI_BYTE, group_->ranks[from], group_->tag,
                       MPI_COMM_WORLD, request);
    });
  }

  template <class StartPiece>
  void start(int index, size_t bytes, int peer, bool receive, StartPiece start_piece) {
    bool done = false;
    {
      const std::lock_guard lock(group_->mutex);
      Operation& operation = group_->operations[index];
      CHECK(operation.pending == 0 && !failed_, "a communicator was used after its end");
      operation.pieces.assign((bytes + kPieceBytes - 1) / kPieceBytes, MPI_REQUEST_NULL);
      operation.bytes = bytes;
      operation.peer = group_->ranks[peer];
      operation.receive = receive;
      failed_ = true;  // unless all of it can be started
      for (size_t i = 0; i < operation.pieces.size(); ++i) {
        check_mpi(start_piece(i * kPieceBytes, static_cast<int>(operation.piece_bytes(i)),
                              &operation.pieces[i]),
                  std::string(receive ? "receive from" : "send to") + " rank " +
                      std::to_string(operation.peer));
        ++operation.pending;
      }
      failed_ = false;
      if (!receive) operation.advance();  // a short message is sent by now
      done = operation.pending == 0;
    }
    if (!receive && !done) transport_.pusher().watch(group_);
  }

  void wait(std::span<const int> operations) override {
    BriefWait brief;    // since something came
    bool told = false;  // for whom it waits, since then
    bool ever_told = false;
    for (;;) {
      bool moved = false;
      if (advance(operations, moved)) break;
      if (moved) {
        brief.restart();
        told = false;
      }
      if (transport_.cancellation().cancelled()) {
        failed_ = true;
        transport_.cancellation().throw_if_cancelled();
      }
      if (brief.lasted() < kBrief) {
        brief.pause();
      } else {
        if (!told) tell_peers(operations);
        told = ever_told = true;
        std::this_thread::sleep_for(kNap);
      }
    }
    if (ever_told) progress().wait_for({});
  }

  void tell_peers(std::span<const int> operations) {
    std::vector<int> peers;
    {
      const std::lock_guard lock(group_->mutex);
      for (const int index : operations) {
        const Operation& operation = group_->operations[index];
        if (operation.pending > 0) peers.push_back(operation.peer);
      }
    }
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    progress().step();  // since the last time a part of it came, or it just began
    progress().wait_for(peers);
  }

  // True when all operations are done; moved: something came.
  bool advance(std::span<const int> operations, bool& moved) {
    const std::lock_guard lock(group_->mutex);
    bool all = true;
    for (const int index : operations) {
      Operation& operation = group_->operations[index];
      if (operation.pending > 0 && operation.advance()) moved = true;
      if (!operation.error.empty()) {
        failed_ = true;
        progress().wait_for(std::span(&operation.peer, 1));
        throw Error(operation.error_code, operation.error);
      }
      all = all && operation.pending == 0;
    }
    return all;
  }

  MpiTransport& transport_;
  const std::shared_ptr<MpiGroup> group_;
  bool failed_ = false;  // an operation was abandoned
};

std::unique_ptr<Communicator> MpiTransport::make_group(std::span<const int> ranks, int tag) {
  int* tag_max = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag_max, &found);
  if (tag < 0 || (found != 0 && tag > *tag_max) || abandoned_tags_.contains(tag)) {
    throw Error(Code::kFailedPrecondition,
                "cannot make a group with tag " + std::to_string(tag) +
                    ": it is out of MPI's range or was used by a group that was abandoned");
  }
  const auto self = std::find(ranks.begin(), ranks.end(), job_.rank());
  CHECK(self != ranks.end(), "a group is made by its members");
  for (const int rank : ranks) CHECK(rank >= 0 && rank < job_.size(), "a rank outside the job");
  auto group = std::make_shared<MpiGroup>();
  group->ranks.assign(ranks.begin(), ranks.end());
  group->tag = tag;
  group->staging = HostCommunicator::make_staging(static_cast<int>(ranks.size()));
  return std::make_unique<MpiCommunicator>(*this, std::move(group),
                                           static_cast<int>(self - ranks.begin()));
}

}  // namespace

MpiJob::MpiJob() {
  explain_bus_errors();  // of MPI's shared memory
  // Nothing here blocks inside MPI, and Open MPI would call sched_yield at every look:
  // brief_wait.h.
  setenv("OMPI_MCA_mpi_yield_when_idle", "0", 0);
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "start MPI");
  // MPICH's and Intel MPI's launchers send it to every rank when one has died, and their MPI_Init
  // has taken it for itself; who died is seen by the control connections.
  std::signal(SIGUSR1, SIG_IGN);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_MULTIPLE) {
    throw Error(Code::kUnavailable,
                "cannot start MPI: " + library_version() +
                    " was built without MPI_THREAD_MULTIPLE; use one that has it");
  }
}

MpiJob::~MpiJob() {
  if (!abandoned_) MPI_Finalize();
}

int MpiJob::rank() const {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int MpiJob::size() const {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

std::string MpiJob::library_version() const {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, length);
  return version.substr(0, version.find_first_of(",\n"));
}

// From rank to rank, so that who is missing can be named.
std::vector<std::string> MpiJob::gather(const std::string& mine,
                                        std::chrono::milliseconds timeout) {
  CHECK(mine.size() < kGatherBytes, "a rank says too much of itself");
  constexpr int kTag = 0;  // no group has rank 0 among its members
  struct Word {
    char text[kGatherBytes] = {};
    MPI_Request request = MPI_REQUEST_NULL;
  };
  // MPI writes to it until all is done: whatever is thrown before that leaves it.
  auto* const words = new std::vector<Word>(rank() == 0 ? size() : 1);
  mine.copy((*words)[0].text, mine.size());
  for (int peer = 1; peer < size() && rank() == 0; ++peer) {
    Word& word = (*words)[peer];
    check_mpi(
        MPI_Irecv(word.text, kGatherBytes, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, &word.request),
        "receive from rank " + std::to_string(peer));
  }
  if (rank() != 0) {
    check_mpi(MPI_Isend((*words)[0].text, kGatherBytes, MPI_BYTE, 0, kTag, MPI_COMM_WORLD,
                        &(*words)[0].request),
              "send to rank 0");
  }
  const auto deadline = steady_clock::now() + timeout;
  for (;;) {
    std::string missing;
    for (size_t i = 0; i < words->size(); ++i) {
      int done = 0;
      check_mpi(MPI_Test(&(*words)[i].request, &done, MPI_STATUS_IGNORE), "hear from the ranks");
      if (done == 0) missing += " " + std::to_string(i);
    }
    if (missing.empty()) break;
    if (steady_clock::now() >= deadline) {
      abandon();
      throw Error(Code::kDeadlineExceeded,
                  rank() == 0 ? "no word by MPI within " + std::to_string(timeout.count()) +
                                    " ms from rank" + missing
                              : "rank 0 takes no message by MPI within " +
                                    std::to_string(timeout.count()) + " ms");
    }
    std::this_thread::sleep_for(kNap);
  }
  const std::unique_ptr<std::vector<Word>> owner(words);
  std::vector<std::string> texts;
  for (const Word& word : *words) texts.emplace_back(word.text, strnlen(word.text, kGatherBytes));
  if (rank() != 0) texts.clear();
  return texts;
}

// One message of fixed size, length and bytes, so that a rank needs to know nothing before it.
std::string MpiJob::broadcast(const std::string& from_root, std::chrono::milliseconds timeout) {
  struct Message {
    uint32_t length = 0;
    char bytes[kBroadcastBytes] = {};
  };
  CHECK(from_root.size() <= kBroadcastBytes, "a broadcast of more than 64 KiB");
  // As in gather().
  auto* const message = new Message();
  if (rank() == 0) {
    message->length = static_cast<uint32_t>(from_root.size());
    std::copy(from_root.begin(), from_root.end(), message->bytes);
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibcast(message, sizeof(Message), MPI_BYTE, 0, MPI_COMM_WORLD, &request),
            "broadcast from rank 0");
  const auto deadline = steady_clock::now() + timeout;
  for (int done = 0; done == 0;) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "broadcast from rank 0");
    if (done != 0) break;
    if (steady_clock::now() >= deadline) {
      abandon();
      throw Error(Code::kDeadlineExceeded,
                  "cannot share the control address: rank " + std::to_string(rank()) +
                      " waited for another rank for " + std::to_string(timeout.count()) +
                      " ms; look for one that failed to start");
    }
    std::this_thread::sleep_for(kNap);
  }
  const std::unique_ptr<Message> owner(message);
  if (message->length > kBroadcastBytes) {
    throw Error(Code::kInternal, "cannot read rank 0's broadcast: its length is " +
                                     std::to_string(message->length) +
                                     ", at most 65536 was expected");
  }
  return std::string(message->bytes, message->length);
}

std::unique_ptr<Transport> MpiJob::make_transport(Cancellation& cancellation,
                                                  std::shared_ptr<Progress> progress) {
  return std::make_unique<MpiTransport>(*this, cancellation, std::move(progress));
}

void MpiJob::abandon() { abandoned_ = true; }

void MpiJob::abort(int status) {
  MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace trireme

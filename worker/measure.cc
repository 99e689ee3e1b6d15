// SPDX-License-Identifier: Apache-2.0
#include "worker/measure.h"

#include <algorithm>
#include <array>

#include "kernels/base/error.h"
#include "worker/comm/network.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int64_t kShort = sizeof(float);
constexpr int64_t kProbe = 64 << 10;
constexpr int64_t kLong = 1 << 20;
constexpr int64_t kLongest = 16 << 20;
constexpr int kShortTrips = 40;  // at most
constexpr int kLongTrips = 4;    // beside the first two
// A peer that the others' time-outs have waited for long enough still gets a look.
constexpr milliseconds kLook{20};

double seconds_since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

Tensor as_tensor(std::vector<float>& values) {
  return {values.data(), DType::kF32, 1, static_cast<int64_t>(values.size())};
}

// What the leader asks for; none is the end. Whole numbers up to 2^24, so floats hold them.
struct Request {
  int64_t bytes = 0;
  int trips = 0;
};

void send_request(Communicator& pair, const Request& request) {
  std::vector<float> values = {float(request.bytes), float(request.trips)};
  pair.send(as_tensor(values), 1);
}

Request receive_request(Communicator& pair) {
  std::vector<float> values(2);
  pair.recv(as_tensor(values), 0);
  const bool sound = values[0] >= kShort && values[0] <= float(kLongest) && values[1] >= 0 &&
                     values[1] <= kShortTrips;
  if (!sound) {
    throw Error(Code::kInvalidArgument, "cannot measure: the peer asks for messages of " +
                                            std::to_string(values[0]) + " bytes, " +
                                            std::to_string(values[1]) + " times");
  }
  return {static_cast<int64_t>(values[0]), static_cast<int>(values[1])};
}

double fastest(Communicator& pair, int64_t bytes, int trips) {
  send_request(pair, {bytes, trips});
  return std::ranges::min(round_trips(pair, bytes, trips));
}

// `least` trips, and a few more where they fit in `seconds`.
double fastest_in(double seconds, Communicator& pair, int64_t bytes, int least, int more) {
  const double first = fastest(pair, bytes, least);
  more = static_cast<int>(std::min(seconds / first, double(more)));
  return more < 1 ? first : std::min(first, fastest(pair, bytes, more));
}

}  // namespace

std::vector<double> round_trips(Communicator& pair, int64_t bytes, int trips) {
  std::vector<float> there(bytes / sizeof(float)), back(kShort / sizeof(float));
  std::vector<double> times;
  for (int i = 0; i < trips; ++i) {
    const auto start = steady_clock::now();
    if (pair.rank() == 0) {
      pair.send(as_tensor(there), 1);
      pair.recv(as_tensor(back), 1);
      times.push_back(seconds_since(start));
    } else {
      pair.recv(as_tensor(there), 0);
      pair.send(as_tensor(back), 0);
    }
  }
  return times;
}

LinkSample lead_measurement(Communicator& pair, milliseconds budget) {
  double latency = 0;
  // What a trip takes beyond a short message there and one back: its bytes, and the trips that MPI
  // makes before it sends so many. On a busy machine the short ones may have had bad luck.
  const auto beyond = [&](double trip) { return std::max(trip - 2 * latency, trip / 16); };
  const double seconds = std::chrono::duration<double>(budget).count();
  fastest(pair, kShort, 1);  // whatever a first message must set up
  latency = fastest_in(seconds / 8, pair, kShort, 1, kShortTrips) / 2;
  const auto bandwidth = [](int64_t bytes, double time) {
    return double(bytes) / std::max(time, 1e-9);
  };
  double time = beyond(fastest(pair, kProbe, 1));
  // Over a far link the first so long one waits for TCP's window to open, trip by trip.
  if (time >= seconds / 4 && time < seconds) {
    time = std::min(time, beyond(fastest(pair, kProbe, 1)));
  }
  double best = bandwidth(kProbe, time);
  if (time < seconds / 4) {  // else it says enough, and a longer one would take too long
    // The first opens TCP's window.
    time = beyond(fastest_in(seconds / 8, pair, kLong, 2, kLongTrips));
    best = bandwidth(kLong, time);
    // Fast links need longer messages to show it; where caches do not hold those, they are slower.
    if (2 * kLongest / best < seconds / 4) {
      best = std::max(best, bandwidth(kLongest, beyond(fastest(pair, kLongest, 2))));
    }
  }
  send_request(pair, {kShort, 0});
  return {latency, best};
}

void answer_measurement(Communicator& pair) {
  for (;;) {
    const Request request = receive_request(pair);
    if (request.trips == 0) return;
    round_trips(pair, request.bytes, request.trips);
  }
}

// An error is a finding, and the pair is left alone from then on.
template <typename Action>
void LinkProbe::attempt(Peer& peer, Action action) {
  if (!peer.finding.error().empty()) return;
  try {
    action();
  } catch (const Error& error) {
    if (error.code() == Code::kCancelled) throw;
    peer.finding.set_error(error.what());
    peer.pair.reset();
  }
}

LinkReport LinkProbe::run(const LinkTask& task) {
  const auto deadline = steady_clock::now() + milliseconds(std::max(task.timeout_ms(), 0));
  cancellation_.set_deadline(deadline);
  try {
    task.step() == LinkTask::STEP_REACH ? reach(task) : measure(task);
  } catch (const Error&) {
    cancellation_.no_deadline();
    throw;
  }
  cancellation_.no_deadline();
  LinkReport report;
  for (const Peer& peer : peers_) *report.add_findings() = peer.finding;
  if (task.step() == LinkTask::STEP_MEASURE) peers_.clear();
  return report;
}

// All first words leave before any is waited for: who is missing is seen by each of its peers on
// its own, and nobody waits for one who waits for another.
void LinkProbe::reach(const LinkTask& task) {
  peers_.clear();
  for (const LinkPeer& peer : task.peers()) {
    if (peer.rank() < 1 || peer.rank() == rank_) {
      throw Error(Code::kInvalidArgument,
                  "cannot measure links: rank " + std::to_string(peer.rank()) + " is no peer");
    }
    Peer& added = peers_.emplace_back();
    added.peer = peer;
    added.finding.set_rank(peer.rank());
  }
  std::vector<float> word = {float(rank_)};
  for (Peer& peer : peers_) {
    attempt(peer, [&] {
      const std::array<int, 2> ranks = {std::min(rank_, peer.peer.rank()),
                                        std::max(rank_, peer.peer.rank())};
      peer.pair = transport_.make_group(ranks, peer.peer.tag());
      peer.pair->send(as_tensor(word), 1 - peer.pair->rank());
    });
  }
  const auto deadline = steady_clock::now() + milliseconds(std::max(task.timeout_ms(), 0));
  for (Peer& peer : peers_) {
    cancellation_.set_deadline(std::max(deadline, steady_clock::now() + kLook));
    attempt(peer, [&] {
      std::vector<float> answer(1);
      peer.pair->recv(as_tensor(answer), 1 - peer.pair->rank());
      if (answer[0] == float(peer.peer.rank())) return;
      throw Error(Code::kInternal, "rank " + std::to_string(answer[0]) + " answers in its place");
    });
  }
  const std::vector<OwnConnection> connections = own_connections();
  for (Peer& peer : peers_) {
    describe_path(peer.peer, connections, task.control_port(), peer.finding);
  }
}

void LinkProbe::measure(const LinkTask& task) {
  const milliseconds budget(std::clamp(task.budget_ms(), 1, 10000));
  for (Peer& peer : peers_) {
    attempt(peer, [&] {
      if (peer.pair->rank() == 1) return answer_measurement(*peer.pair);
      const LinkSample sample = lead_measurement(*peer.pair, budget);
      peer.finding.set_latency_s(sample.latency_s);
      peer.finding.set_bandwidth_bytes_per_s(sample.bandwidth_bytes_per_s);
    });
  }
}

}  // namespace trireme

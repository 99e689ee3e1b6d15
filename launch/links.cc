// SPDX-License-Identifier: Apache-2.0
#include "launch/links.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <iostream>
#include <map>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "launch/preflight.h"
#include "topology/machine_text.h"
#include "topology/rounds.h"
#include "topology/slow_links.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using SteadyClock = std::chrono::steady_clock;

constexpr milliseconds kReachTimeout{8000};  // a rank that is there answers at once
constexpr milliseconds kGrace{2000};         // for the reports, beyond the workers' own time-outs
constexpr milliseconds kMeasureBudget{500};  // of all rounds
constexpr milliseconds kMostOfAPair{100};
constexpr milliseconds kPollInterval{1};
constexpr size_t kShownPairs = 6;

using Reports = std::map<int, LinkReport>;  // by rank

std::string name_of(const RankInfo& info) {
  return "rank " + std::to_string(info.rank()) + " on " + info.host();
}

class Measurement {
 public:
  Measurement(Channel& channel, const std::vector<Hello>& workers, int control_port,
              milliseconds timeout)
      : channel_(channel), workers_(workers), timeout_(timeout) {
    for (const Hello& worker : workers) hosts_.push_back(worker.info().host());
    const Rounds rounds = measurement_rounds(hosts_);
    hosts_.insert(hosts_.begin(), "");  // by rank from here on
    if (rounds.empty()) return;
    const auto budget = std::min(kMostOfAPair, kMeasureBudget / int64_t(rounds.size()));
    for (const Hello& worker : workers) {
      LinkTask& task = tasks_[worker.info().rank()];
      task.set_control_port(control_port);
      task.set_budget_ms(static_cast<int32_t>(budget.count()));
    }
    int tag = 0;
    for (const auto& round : rounds) {
      for (const auto& [a, b] : round) {
        add_peer(a, b, tag);
        add_peer(b, a, tag++);
      }
    }
  }

  // Empty: there is no pair.
  std::vector<MeasuredLink> run() {
    if (tasks_.empty()) return {};
    require_reached(step(LinkTask::STEP_REACH, std::min(timeout_, kReachTimeout)));
    const Reports reports = step(LinkTask::STEP_MEASURE, timeout_);
    require_reached(reports);
    std::vector<MeasuredLink> links;
    for (const auto& [rank, report] : reports) {
      for (const LinkFinding& finding : report.findings()) {
        if (finding.rank() < rank) continue;
        links.push_back({info(rank), info(finding.rank()), finding,
                         seen_interface(reports.at(finding.rank()), rank)});
      }
    }
    return links;
  }

 private:
  const RankInfo& info(int rank) const { return workers_.at(rank - 1).info(); }

  void add_peer(int self, int other, int tag) {
    LinkPeer& peer = *tasks_[workers_[self].info().rank()].add_peers();
    peer.set_rank(workers_[other].info().rank());
    peer.set_tag(tag);
    peer.set_host(workers_[other].info().host());
    *peer.mutable_addresses() = workers_[other].addresses();
  }

  static std::string seen_interface(const LinkReport& report, int peer) {
    for (const LinkFinding& finding : report.findings()) {
      if (finding.rank() == peer && finding.transport() == "TCP") return finding.interface();
    }
    return "";
  }

  // Every worker's report of one step.
  Reports step(LinkTask::Step step, milliseconds timeout) {
    for (auto& [rank, task] : tasks_) {
      task.set_step(step);
      task.set_timeout_ms(static_cast<int32_t>(timeout.count()));
      ToWorker message;
      *message.mutable_links() = task;
      channel_.send(rank, message);
    }
    Reports reports;
    const auto deadline = SteadyClock::now() + timeout + kGrace;
    while (reports.size() < tasks_.size()) {
      const auto event = channel_.poll();
      if (event) {
        require_life(*event, hosts_);
        if (event->kind == ChannelEvent::Kind::kMessage && event->message.has_links()) {
          reports[event->rank] = checked(event->rank, event->message.links());
        }
      } else if (SteadyClock::now() > deadline) {
        fail_silent(reports, timeout + kGrace);
      } else {
        std::this_thread::sleep_for(kPollInterval);
      }
    }
    return reports;
  }

  // A report must be of the peers that were asked about, in their order.
  LinkReport checked(int rank, const LinkReport& report) const {
    const LinkTask& task = tasks_.at(rank);
    bool sound = report.findings_size() == task.peers_size();
    for (int i = 0; sound && i < report.findings_size(); ++i) {
      const LinkFinding& finding = report.findings(i);
      sound = finding.rank() == task.peers(i).rank() && finding.latency_s() >= 0 &&
              finding.latency_s() < 1e6 && finding.bandwidth_bytes_per_s() >= 0 &&
              finding.bandwidth_bytes_per_s() < 1e18;
    }
    if (sound) return report;
    throw Error(Code::kInternal,
                "cannot measure links: " + name_of(info(rank)) + " reports what it was not asked");
  }

  [[noreturn]] void fail_silent(const Reports& reports, milliseconds timeout) const {
    std::string missing;
    for (const auto& [rank, task] : tasks_) {
      if (!reports.contains(rank)) missing += (missing.empty() ? "" : ", ") + name_of(info(rank));
    }
    throw Error(Code::kDeadlineExceeded, "cannot start: no report of links within " +
                                             std::to_string(timeout.count() / 1000) + " s from " +
                                             missing + "; see whether they still run. " +
                                             unreached(reports));
  }

  void require_reached(const Reports& reports) const {
    const std::string pairs = unreached(reports);
    if (pairs.empty()) return;
    throw Error(Code::kUnavailable,
                "cannot start: " + pairs +
                    ". Look whether those ranks still run, for a firewall between their hosts, and "
                    "whether MPI takes the right interface (Open MPI: --mca btl_tcp_if_include)");
  }

  // The pairs that cannot connect or fell silent, each told by one of its ends; empty: none.
  std::string unreached(const Reports& reports) const {
    std::map<std::pair<int, int>, std::string> pairs;
    std::map<int, size_t> count_of;  // failed pairs of each rank
    for (const auto& [rank, report] : reports) {
      for (const LinkFinding& finding : report.findings()) {
        if (finding.error().empty()) continue;
        const int other = finding.rank();
        const std::string path =
            finding.transport() + (finding.interface().empty() ? "" : ", ") + finding.interface();
        const bool added =
            pairs
                .emplace(std::minmax(rank, other), name_of(info(rank)) + " hears nothing from " +
                                                       name_of(info(other)) + " (" + path +
                                                       "): " + finding.error())
                .second;
        if (added) ++count_of[rank], ++count_of[other];
      }
    }
    std::string text;
    size_t shown = 0;
    for (const auto& [pair, word] : pairs) {
      if (shown++ == kShownPairs) break;
      text += (text.empty() ? "" : "; ") + word;
    }
    if (pairs.size() > kShownPairs) {
      text += "; and " + std::to_string(pairs.size() - kShownPairs) + " more pairs";
    }
    for (const auto& [rank, count] : count_of) {
      if (pairs.size() > 1 && count == pairs.size()) {
        text += "; " + name_of(info(rank)) + " is in each of these pairs";
      }
    }
    return printable(text);
  }

  Channel& channel_;
  const std::vector<Hello>& workers_;
  const milliseconds timeout_;
  std::vector<std::string> hosts_;
  std::map<int, LinkTask> tasks_;  // by rank
};

Link to_link(const MeasuredLink& measured) {
  Link link;
  link.set_rank_a(measured.a.rank());
  link.set_rank_b(measured.b.rank());
  LinkSpeed& speed = *link.mutable_speed();
  const bool one_host = measured.a.host() == measured.b.host();
  speed.set_link_class(one_host ? LINK_CLASS_NODE : LINK_CLASS_NET);
  speed.set_latency_s(measured.finding.latency_s());
  speed.set_bandwidth_bytes_per_s(measured.finding.bandwidth_bytes_per_s());
  if (!is_virtual_nic(measured.finding.interface())) {  // whose speed says nothing
    speed.set_nominal_bandwidth_bytes_per_s(measured.finding.interface_bytes_per_s());
  }
  if (measured.finding.transport() == "TCP") {
    link.set_interface_a(printable(measured.finding.interface()));
    link.set_interface_b(printable(measured.interface_b));
  }
  speed.set_measured(true);
  speed.set_measured_at_unix_s(std::time(nullptr));
  return link;
}

}  // namespace

void measure_links(Channel& channel, const std::vector<Hello>& workers, int control_port,
                   milliseconds timeout, Topology& topology) {
  const auto start = SteadyClock::now();
  const std::vector<MeasuredLink> links =
      Measurement(channel, workers, control_port, timeout).run();
  if (links.empty()) return;
  for (const MeasuredLink& link : links) *topology.add_links() = to_link(link);
  const auto taken = std::chrono::duration_cast<milliseconds>(SteadyClock::now() - start);
  std::cerr << "Links between workers, measured in " << taken.count() << " ms\n"
            << link_table(links);
  const std::vector<std::string> slow = mark_slow_links(topology);
  for (size_t i = 0; i < std::min(slow.size(), kShownPairs); ++i) {
    std::cerr << "  slow: " << printable(slow[i]) << '\n';
  }
  if (slow.size() > kShownPairs) {
    std::cerr << "  and " << slow.size() - kShownPairs << " more\n";
  }
}

}  // namespace trireme

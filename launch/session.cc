// SPDX-License-Identifier: Apache-2.0
#include "launch/session.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kDrainTime{30000};
// Between the last stream's end and the job's: for this process and the launcher to end in.
constexpr milliseconds kBeforeJobEnd{10000};
// For the streams' last words: a client that reads has them within milliseconds.
constexpr milliseconds kCloseTime{1000};
// When a rank dies mpirun ends the others by SIGTERM. It may come before the dead rank's connection
// is seen to end, or some seconds after; either way it asks for no drain.
constexpr milliseconds kDeathMayFollow{200};
constexpr milliseconds kDeathExplains{5000};
constexpr milliseconds kIdlePoll{50};
// The wall clock may be set: it is looked at this often.
constexpr milliseconds kClockLook{600000};
constexpr size_t kIdsOfALine = 16;

std::string seconds_of(milliseconds time) {
  const int64_t tenths = time.count() / 100;
  return std::to_string(tenths / 10) + (tenths % 10 == 0 ? "" : "." + std::to_string(tenths % 10)) +
         " s";
}

std::string requests_of(size_t count) {
  return std::to_string(count) + (count == 1 ? " request" : " requests");
}

}  // namespace

Session::Session(const Options& options, StopSignal& stop, const std::atomic<bool>& drain_asked,
                 Service& service, Engine& engine, StatusFile& status_file)
    : launch_(options.launch),
      drain_limit_(options.serve.drain_limit),
      drain_before_(options.serve.drain_before),
      stop_(stop),
      drain_asked_(drain_asked),
      service_(service),
      engine_(engine),
      status_file_(status_file) {}

Session::~Session() {
  engine_.stop(end_reason_);
  if (!service_.close_streams(kCloseTime)) log_warn("some clients did not read to their end");
}

std::string Session::run() {
  look_for_job_end();
  for (;;) {
    const StopSignal::Event event = stop_.wait(until_drain());
    look_for_deaths();
    if (event == StopSignal::Event::kSignal) {
      wait_for_explanation();
      return drain("by a signal", drain_limit_.value_or(kDrainTime));
    }
    if (drain_asked_) return drain("by a call of Drain", drain_limit_.value_or(kDrainTime));
    if (!job_ends_soon()) continue;
    const auto left = std::chrono::duration_cast<milliseconds>(*job_end_ - WallClock::now());
    const milliseconds most = std::max(left - kBeforeJobEnd, milliseconds(0));
    return drain("since the Slurm job ends at " + utc(*job_end_),
                 std::min(drain_limit_.value_or(most), most));
  }
}

void Session::look_for_job_end() {
  if (drain_before_.count() == 0) return;
  job_end_ = find_job_end(launch_);
  if (job_end_) {
    log_info("the Slurm job ends at " + utc(*job_end_) + "; no more requests from " +
             seconds_of(drain_before_) + " before that");
  } else {
    log_warn(launch_.slurm_job_id.empty()
                 ? "--drain_before has no effect: this is no Slurm job (SLURM_JOB_ID is not set)"
                 : "--drain_before has no effect: Slurm job " + launch_.slurm_job_id +
                       " has no time limit, or squeue does not tell it");
  }
}

milliseconds Session::until_drain() const {
  if (!job_end_) return milliseconds(-1);
  const auto left = std::chrono::ceil<milliseconds>(*job_end_ - drain_before_ - WallClock::now());
  return std::clamp(left, milliseconds(0), kClockLook);
}

bool Session::job_ends_soon() {
  if (!job_end_ || WallClock::now() < *job_end_ - drain_before_) return false;
  const WallClock::time_point before = *job_end_;
  LaunchInfo known = launch_;
  known.slurm_job_end = before;  // where squeue does not answer
  job_end_ = find_job_end(known);
  if (!job_end_) {
    log_info("the Slurm job has no time limit any more");
    return false;
  }
  // squeue counts in whole seconds.
  if (*job_end_ <= before + std::chrono::seconds(2)) return true;
  log_info("the Slurm job was given more time: it ends at " + utc(*job_end_));
  return WallClock::now() >= *job_end_ - drain_before_;
}

void Session::look_for_deaths() {
  const v1::ClusterHealth health = engine_.health();
  status_file_.set_first_failure(health.first_failure());
  const std::string lost = engine_.lost_reason();
  if (!lost.empty()) give_up("no replica is left: " + lost);
  int num_dead = 0;
  std::string latest;
  for (const v1::RankHealth& rank : health.ranks()) {
    if (rank.state() != "dead") continue;
    ++num_dead;
    latest = "rank " + std::to_string(rank.rank()) + " (host " + rank.host() + ") died";
  }
  if (num_dead == num_dead_) return;
  num_dead_ = num_dead;
  death_ = latest;
  death_time_ = Clock::now();
}

void Session::wait_for_explanation() {
  const Clock::time_point until = Clock::now() + kDeathMayFollow;
  for (;;) {
    look_for_deaths();
    if (death_time_ && Clock::now() - *death_time_ < kDeathExplains) {
      give_up(death_ + ", and the launcher ends the job");
    }
    const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
    if (left.count() <= 0) return;
    if (stop_.wait(left) == StopSignal::Event::kSignal) hurry_ = true;
  }
}

std::string Session::drain(const std::string& why, milliseconds limit) {
  const Clock::time_point until = Clock::now() + limit;
  const std::string last = utc(WallClock::now() + limit);
  service_.drain("the server ends, " + why + "; what runs has until " + last);
  const size_t running = engine_.open_requests().size();
  const std::string state = "ending " + why + ": no more requests; " + requests_of(running) +
                            (running == 1 ? " runs and has " : " run and have ") +
                            seconds_of(limit) + ", until " + last;
  log_info(state + "; a second signal ends them at once");
  status_file_.set_state(StatusFile::State::kDraining, state);
  while (!hurry_ && Clock::now() < until && !engine_.wait_idle(kIdlePoll)) {
    look_for_deaths();
    if (stop_.take_signal()) hurry_ = true;
  }
  look_for_deaths();  // they end requests, too
  const std::vector<std::string> cut = engine_.open_requests();
  if (cut.empty()) {
    log_info("drained: every request has ended by itself");
    return "drained " + why + ": every request has ended by itself";
  }
  const std::string result = "drained " + why + ": cut " + requests_of(cut.size()) + " of the " +
                             std::to_string(running) + " that ran, " +
                             (hurry_ ? "by a second signal" : "after " + seconds_of(limit));
  for (size_t first = 0; first < cut.size(); first += kIdsOfALine) {
    std::string line = result + ":";
    for (size_t i = first; i < std::min(first + kIdsOfALine, cut.size()); ++i) line += ' ' + cut[i];
    log_warn(line);
  }
  end_reason_ = "the server ends, " + why + ", and the request was cut; send it to another one";
  return result;
}

void Session::give_up(const std::string& why) {
  end_reason_ = why;
  throw Error(Code::kUnavailable, "cannot go on: " + why);
}

}  // namespace trireme

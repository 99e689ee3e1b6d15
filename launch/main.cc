// SPDX-License-Identifier: Apache-2.0
// What this process is to do, and the only place where a failure ends it.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <optional>
#include <string>
#include <thread>

#include "kernels/base/error.h"
#include "launch/bench.h"
#include "launch/chat.h"
#include "launch/generate.h"
#include "launch/job.h"
#include "launch/options.h"
#include "launch/plan.h"
#include "launch/probe.h"
#include "launch/serve.h"
#include "launch/status_file.h"
#include "launch/top.h"
#include "topology/device_map.h"

namespace trireme {
namespace {

constexpr int kFailure = 1;
constexpr int kBadInput = 2;

int exit_status(Code code) {
  const bool bad_input = code == Code::kInvalidArgument || code == Code::kNotFound ||
                         code == Code::kFailedPrecondition;
  return bad_input ? kBadInput : kFailure;
}

// A rank that computes. The launcher passes signals on to every rank: what they mean is for rank 0
// to say, and its end, seen on the control connection, is the worker's.
int work(const Options& options) {
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) std::signal(number, SIG_IGN);
  return run_worker(options);
}

// Of files rank 0 alone speaks.
int help_probe(const Options& options) {
  return options.probe.topology.empty() ? work(options) : 0;
}

// `result`: what came of a service that was asked to end.
int run(const Options& options, std::optional<StatusFile>& status_file, std::string& result) {
  const bool leads = options.launch.rank == 0;
  switch (options.command) {
    case Options::Command::kServe:
      if (!leads) return work(options);
      status_file.emplace(options.serve.status_file);
      result = serve(options, *status_file);
      return 0;
    case Options::Command::kGenerate: return leads ? generate(options) : work(options);
    case Options::Command::kPlan:
      if (leads) return plan(options);
      return plans_for_this_job(options.plan) ? work(options) : 0;
    case Options::Command::kProbe: return leads ? probe(options) : help_probe(options);
    case Options::Command::kChat: return leads ? chat(options.chat) : 0;
    case Options::Command::kTop: return leads ? top(options.top) : 0;
    case Options::Command::kBench: return leads ? bench(options.bench) : 0;
    case Options::Command::kNone: return 0;
  }
  return 0;
}

// Every rank finds the same mistake in the options; rank 0 says so, and its end ends the others:
// mpirun was seen to take two seconds for that.
void leave_the_word_to_rank_0() {
  int rank = 0;
  try {
    rank = read_launch_info().rank;
  } catch (const Error&) {  // that is the mistake: everyone says so
  }
  if (rank != 0) std::this_thread::sleep_for(std::chrono::seconds(5));
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  using namespace trireme;
  int status = kFailure;
  bool parsed = false;
  std::optional<StatusFile> status_file;
  std::string result;
  try {
    const Options options = parse_options(argc, argv);
    parsed = true;
    status = run(options, status_file, result);
  } catch (const Error& error) {
    if (!parsed) leave_the_word_to_rank_0();
    result = error.what();
    std::fprintf(stderr, "trireme: %s\n", error.what());
    status = exit_status(error.code());
  } catch (const std::exception& error) {
    result = std::string("a bug, or no memory: ") + error.what();
    std::fprintf(stderr, "trireme: %s\n", result.c_str());
  }
  if (status_file) status_file->end(status, result);
  return finish_process(status);
}

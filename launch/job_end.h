// SPDX-License-Identifier: Apache-2.0
// When the batch system will end this job: what --drain_before counts back from.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "launch/options.h"

namespace trireme {

using WallClock = std::chrono::system_clock;

// Asks Slurm how much time the job has left, so that a limit that was changed counts as it is now;
// where it does not answer within some seconds, the end that the job's environment tells. nullopt:
// not a Slurm job, or one without a limit.
std::optional<WallClock::time_point> find_job_end(const LaunchInfo& launch);

// "1-02:03:04", "2:03:04", "3:04" or "4", as squeue's %L prints it; nullopt for its words
// (UNLIMITED, NOT_SET, INVALID) and everything else.
std::optional<std::chrono::seconds> parse_time_left(const std::string& text);

// Runs a program of the PATH and returns what it prints, at most 4 KiB of it; nullopt: it cannot be
// started, fails, or takes longer than `timeout`, and is then killed.
std::optional<std::string> output_of(const std::vector<std::string>& command,
                                     std::chrono::milliseconds timeout);

// "2026-11-25T21:40:03Z", which a client in another time zone can read too.
std::string utc(WallClock::time_point time);

}  // namespace trireme

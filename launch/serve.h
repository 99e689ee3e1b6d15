// SPDX-License-Identifier: Apache-2.0
// `trireme serve`: a port, a job, and a session from its first request to its last.
#pragma once

#include <string>

#include "launch/options.h"
#include "launch/status_file.h"

namespace trireme {

// Serves until a signal, a Drain call, the end of the Slurm job or the loss of the last replica
// ends it. Returns what came of it when it was asked to end; throws Error otherwise. REQUIRES: the
// process has no other thread yet.
std::string serve(const Options& options, StatusFile& status_file);

}  // namespace trireme

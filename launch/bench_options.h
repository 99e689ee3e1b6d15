// SPDX-License-Identifier: Apache-2.0
// The flags of `trireme bench`; called by options.cc.
#pragma once

#include "launch/options.h"

namespace CLI {
class App;
}  // namespace CLI

namespace trireme {

CLI::App* add_bench_flags(CLI::App& app, BenchFlags& flags);
// Throws kInvalidArgument for what is missing, or does not go together.
void check_bench(const BenchFlags& flags);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// `trireme bench`: what a server does under a load.
#pragma once

#include "launch/options.h"

namespace trireme {

// Sends requests of random words as the flags say, and prints times and rates: tables, or one JSON
// object on stdout. Returns 0; throws Error where no server answers, a request failed that was not
// merely refused for want of a place, or a signal ended it (the report of what was answered is
// printed all the same). REQUIRES: no other thread yet.
int bench(const BenchFlags& flags);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// The flags of `trireme probe`; called by options.cc.
#pragma once

#include "launch/options.h"

namespace CLI {
class App;
}  // namespace CLI

namespace trireme {

CLI::App* add_probe_flags(CLI::App& app, ProbeFlags& flags);

}  // namespace trireme

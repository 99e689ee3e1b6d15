// SPDX-License-Identifier: Apache-2.0
// Work on the emulated stream, and recordings of it.
#pragma once

#include <functional>

namespace trireme::cuda::emulation {

// Does it; or, while this thread records, keeps it for the graph. It must own what it needs.
void perform(std::function<void()> work);
bool recording();

}  // namespace trireme::cuda::emulation

// SPDX-License-Identifier: Apache-2.0
#include "kernels/backend.h"

#include <array>

#include "kernels/base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_device.h"

namespace trireme {

// A device whose operations need none.
void Backend::reserve_workspace(int32_t, int32_t) {}

Weight Backend::make_quantised(DType dtype, int64_t, int64_t, int64_t, int64_t) {
  throw Error(Code::kFailedPrecondition,
              std::string("cannot keep weights of ") + dtype_name(dtype) + " on " + name() +
                  ": it has no arithmetic for them; use --dtype bf16, or run this rank on a GPU");
}

namespace {

struct BackendEntry {
  const char* device;
  std::unique_ptr<Backend> (*make)(const BackendOptions& options);
};

// The list of backends. A new one is a folder beside cpu/ and a line here.
constexpr std::array kBackends = {
    BackendEntry{"cpu", make_cpu_backend},
    BackendEntry{"cuda", make_cuda_backend},
};

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  std::string known;
  for (const BackendEntry& entry : kBackends) {
    if (options.device == entry.device) return entry.make(options);
    known += known.empty() ? "" : ", ";
    known += entry.device;
  }
  throw Error(Code::kInvalidArgument, "cannot make a backend: unknown device '" + options.device +
                                          "', this program knows: " + known);
}

}  // namespace trireme

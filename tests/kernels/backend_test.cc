// SPDX-License-Identifier: Apache-2.0
// Making backends, and what is refused; device discovery.
#include "kernels/backend.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/sanitized.h"

namespace trireme {
namespace {

void expect_error(Code code, const std::string& part, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(MakeBackendTest, RefusesUnknownNames) {
  expect_error(Code::kInvalidArgument, "cpu, cuda", [] { make_backend({"tpu", 1, "auto"}); });
  expect_error(Code::kInvalidArgument, "avx2", [] { make_backend({"cpu", 1, "sse9"}); });
  expect_error(Code::kInvalidArgument, "0 threads", [] { make_backend({"cpu", 0, "auto"}); });
  expect_error(Code::kInvalidArgument, "5000 threads", [] { make_backend({"cpu", 5000, "auto"}); });
}

TEST(MakeBackendTest, AutoIsTheFastestPath) {
  ASSERT_FALSE(cpu_isas().empty());
  EXPECT_EQ(make_backend({"cpu", 2, "auto"})->name(), "cpu " + cpu_isas().back() + ", 2 threads");
  EXPECT_EQ(make_backend({"cpu", 1, "avx2"})->name(), "cpu avx2, 1 thread");
}

// Where the system has no room for their stacks, as under a limit on processes.
TEST(MakeBackendTest, MoreThreadsThanTheSystemStarts) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need address space of their own";
  EXPECT_EXIT(
      {
        long pages = 0;
        std::FILE* const file = std::fopen("/proc/self/statm", "r");
        if (file == nullptr || std::fscanf(file, "%ld", &pages) != 1) std::_Exit(2);
        rlimit limit{};
        limit.rlim_cur = limit.rlim_max = static_cast<rlim_t>(pages) * 4096 + (rlim_t{128} << 20);
        setrlimit(RLIMIT_AS, &limit);
        try {
          make_backend({"cpu", 4096, "auto"});
        } catch (const Error& error) {
          std::fprintf(stderr, "%s\n", error.what());
          std::_Exit(error.code() == Code::kResourceExhausted ? 0 : 1);
        }
        std::_Exit(3);
      },
      testing::ExitedWithCode(0), "cannot start 4096 threads, only [0-9]+: .*lower --threads");
}

TEST(MakeBackendTest, MemoryIsZeroedAlignedAndRefusedByTheByte) {
  const auto backend = make_backend({});
  EXPECT_EQ(backend->allocate(0).data(), nullptr);
  const Buffer buffer = backend->allocate(1000);
  EXPECT_EQ(buffer.bytes(), 1000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  for (size_t i = 0; i < 1000; ++i) EXPECT_EQ(static_cast<const char*>(buffer.data())[i], 0);
  const size_t most = size_t{1} << 60;
  expect_error(Code::kResourceExhausted, std::to_string(most), [&] { backend->allocate(most); });
}

TEST(MakeBackendTest, CudaSaysWhatIsMissing) {
  const CudaDevices found = cuda_devices();
  EXPECT_EQ(found.devices.empty(), !found.reason.empty());
  for (const CudaDevice& device : found.devices) {
    EXPECT_FALSE(device.name.empty());
    EXPECT_GT(device.memory_bytes, 0);
    EXPECT_GE(device.pci_id.size(), 10u) << device.pci_id;
  }
  if (!found.devices.empty()) GTEST_SKIP() << "there is a GPU";
  expect_error(Code::kFailedPrecondition, "CPU ranks", [] { make_backend({"cuda", 1, "auto"}); });
}

}  // namespace
}  // namespace trireme

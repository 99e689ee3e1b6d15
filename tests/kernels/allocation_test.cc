// SPDX-License-Identifier: Apache-2.0
// No operation allocates once its shapes were seen: neither through operator new nor by mapping
// pages.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "tests/kernels/paged_batch.h"

namespace {
std::atomic<int64_t> g_news = 0;
}

// Not inlined: the compiler would else see malloc meet a delete, and warn.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++g_news;
  if (void* data = std::malloc(bytes == 0 ? 1 : bytes)) return data;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* data) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete(void* data, size_t) noexcept { std::free(data); }

namespace trireme {
namespace {

// Pages of address space of this process.
int64_t mapped_pages() {
  long pages = -1;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  EXPECT_EQ(std::fscanf(file, "%ld", &pages), 1);
  std::fclose(file);
  return pages;
}

class AllocationTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, AllocationTest, all_paths(), path_name);

TEST_P(AllocationTest, NoneAfterTheFirstStep) {
  const auto backend = make(2);
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5, 9, 2, 6};
  const std::vector<int32_t> slots = {0, 1, 2, 3, 4, 5, 6, 7};
  PagedBatch batch(*backend, activation(), 2, 64, 16, {8, 500}, {1, 7});
  batch.set_prefix(*backend, 70, 3);
  Weight table = backend->make_weight(weight_type(), 32, 256);
  Weight qkv = backend->make_weight(weight_type(), 512, 256);
  GuardedTensor x(*backend, DType::kF32, 8, 256);
  GuardedTensor h(*backend, activation(), 8, 256);
  GuardedTensor y(*backend, DType::kF32, 8, 512);
  const std::vector<float> ones(512, 1.0f);
  RopeTable rope;
  rope.cos = ones.data();
  rope.sin = ones.data();
  rope.num_positions = 16;
  rope.rotary_dim = 64;

  const auto step = [&] {
    backend->embed(x, ids.data(), table, 0);
    backend->rms_norm(h, x, ones.data(), 1e-5f);
    backend->add_rms_norm(h, x, y.view().column_range(0, 256), ones.data(), 1e-5f);
    backend->matmul(y, h, qkv, nullptr);
    backend->rope(y.view().column_range(0, 384), 6, ids.data(), rope);
    backend->store_kv(batch.kv, y.view().column_range(256, 128), y.view().column_range(384, 128),
                      slots.data());
    backend->attention(h, y.view().column_range(0, 256), batch.kv, batch.view, {0, 0, 2},
                       {0.125f, 50.0f, 100});
    backend->rms_norm_heads(y.view().column_range(0, 256), 4, ones.data(), 1e-5f);
    backend->gated_activation(h, y, Backend::Activation::kSilu);
    backend->gated_activation(h, y, Backend::Activation::kGeluTanh);
    backend->scale(x, 0.5f);
    backend->soft_cap(y, 30.0f);
    backend->add(x, y.view().column_range(0, 256));
    backend->gather_rows(x, y.view().column_range(0, 256), slots.data());
  };
  const int64_t news_before_first = g_news;
  step();
  EXPECT_GT(g_news, news_before_first) << "the counter does not count";
  mapped_pages();  // stdio's own buffer
  const int64_t news = g_news;
  const int64_t pages = mapped_pages();
  for (int i = 0; i < 5; ++i) step();
  EXPECT_EQ(g_news, news);
  EXPECT_EQ(mapped_pages(), pages);
}

}  // namespace
}  // namespace trireme

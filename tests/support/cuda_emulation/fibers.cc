// SPDX-License-Identifier: Apache-2.0
// The ctas of an emulated launch. The thread that launches runs them; fibers take turns in the
// order of their threads, each until it waits.
#include <chrono>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/cuda/launch.cuh"
#include "tests/support/cuda_emulation/memory.h"

// Goes on with another stack: leaves here what a function must preserve (System V ABI for x86-64)
// and takes what lies there. swapcontext() would ask the kernel for the signal mask each time.
extern "C" void trireme_switch_stacks(void** here, void* there);
asm(R"(
  .text
  .type trireme_switch_stacks, @function
trireme_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size trireme_switch_stacks, .-trireme_switch_stacks
)");

namespace trireme::cuda::emulation {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 << 10;

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

struct Fiber {
  enum class State { kReady, kAtCta, kAtWarp, kDone };
  void* at = nullptr;  // its stack, while others run
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  uint3 index{};
  int number = 0;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
  bool odd_exchange = false;
};

struct Cta {
  std::vector<Fiber> fibers;
  void* scheduler = nullptr;
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  uint3 index{};
  dim3 size, grid;
  std::vector<std::byte> shared;
  // Two sets of slots in turn: a lane may be at the next exchange while others read this one.
  std::vector<std::byte> slots[2];
  // Of the launch: how often its fibers looked in vain for what another device writes.
  int64_t looks = 0;
  std::chrono::steady_clock::time_point begun;
};

Cta& cta() {
  static thread_local Cta instance;
  return instance;
}

void run_copies(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}

void fiber_main() {
  Cta& c = cta();
  (*c.body)();
  c.running->state = Fiber::State::kDone;
  trireme_switch_stacks(&c.running->at, c.scheduler);
}

void start(Fiber& fiber, int number) {
  // Not cleared, so that only what is used takes memory.
  if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  // The address of fiber_main below a return address that it never uses, and six registers.
  auto* top = reinterpret_cast<uintptr_t*>(
      (reinterpret_cast<uintptr_t>(fiber.stack.get()) + kStackBytes) / 16 * 16);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.at = top;
  fiber.state = Fiber::State::kReady;
  fiber.index = {static_cast<unsigned>(number), 0, 0};
  fiber.number = number;
  fiber.groups.clear();
  fiber.open_group.clear();
  fiber.odd_exchange = false;
}

void wait(Fiber::State state) {
  Cta& c = cta();
  Fiber& self = *c.running;
  self.state = state;
  trireme_switch_stacks(&self.at, c.scheduler);
}

// Lets fibers [begin, end) go on if all that live wait in `state`.
bool release(size_t begin, size_t end, Fiber::State state) {
  Cta& c = cta();
  bool any = false;
  for (size_t i = begin; i < end; ++i) {
    if (c.fibers[i].state == Fiber::State::kDone) continue;
    if (c.fibers[i].state != state) return false;
    any = true;
  }
  for (size_t i = begin; i < end && any; ++i) {
    if (c.fibers[i].state == state) c.fibers[i].state = Fiber::State::kReady;
  }
  return any;
}

void run_cta(size_t threads) {
  Cta& c = cta();
  for (;;) {
    for (size_t i = 0; i < threads; ++i) {
      if (c.fibers[i].state != Fiber::State::kReady) continue;
      c.running = &c.fibers[i];
      trireme_switch_stacks(&c.scheduler, c.running->at);
    }
    const bool all_done =
        std::all_of(c.fibers.begin(), c.fibers.begin() + static_cast<std::ptrdiff_t>(threads),
                    [](const Fiber& fiber) { return fiber.state == Fiber::State::kDone; });
    if (all_done) return;
    const bool any_ready =
        std::any_of(c.fibers.begin(), c.fibers.begin() + static_cast<std::ptrdiff_t>(threads),
                    [](const Fiber& fiber) { return fiber.state == Fiber::State::kReady; });
    bool released = any_ready | release(0, threads, Fiber::State::kAtCta);
    for (size_t i = 0; i < threads; i += kLanes) {
      released |= release(i, std::min(threads, i + kLanes), Fiber::State::kAtWarp);
    }
    CHECK(released, "threads of a cta wait for each other: a barrier that not all reach");
  }
}

}  // namespace

const uint3& thread_index() { return cta().running->index; }
const uint3& cta_index() { return cta().index; }
const dim3& cta_size() { return cta().size; }
const dim3& grid_size() { return cta().grid; }
int lane() { return cta().running->number % kLanes; }
void* shared_memory() { return cta().shared.data(); }
void wait_for_cta() { wait(Fiber::State::kAtCta); }

void wait_for_others() {
  constexpr int kLooks = 2048;  // of all fibers, before the core is given away
  constexpr std::chrono::seconds kPatience{120};
  Cta& c = cta();
  if (++c.looks % kLooks == 0) {
    CHECK(std::chrono::steady_clock::now() - c.begun < kPatience,
          "a kernel waits for another device that does not write");
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  wait(Fiber::State::kReady);
}

const std::byte* exchange(const void* mine, size_t bytes) {
  Cta& c = cta();
  Fiber& self = *c.running;
  CHECK(bytes <= kExchangeBytes, "an exchange of more than a slot");
  std::vector<std::byte>& slots = c.slots[self.odd_exchange ? 1 : 0];
  self.odd_exchange = !self.odd_exchange;
  std::memcpy(slots.data() + static_cast<size_t>(self.number) * kExchangeBytes, mine, bytes);
  wait(Fiber::State::kAtWarp);
  return slots.data() + static_cast<size_t>(self.number / kLanes * kLanes) * kExchangeBytes;
}

void copy_later(void* to, const void* from, size_t bytes) {
  const auto misplaced = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 != 0; };
  CHECK(!misplaced(to) && !misplaced(from), "a copy of 16 bytes that are not aligned");
  cta().running->open_group.push_back({to, from, bytes});
}

void close_group() {
  Fiber& self = *cta().running;
  self.groups.push_back(std::move(self.open_group));
  self.open_group.clear();
}

void wait_for_all_groups_but(size_t latest) {
  Fiber& self = *cta().running;
  for (; self.groups.size() > latest; self.groups.pop_front()) run_copies(self.groups.front());
}

void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  const DeviceAccess access;
  Cta& c = cta();
  CHECK(threads > 0 && threads <= 1024 && grid.x > 0 && grid.y > 0 && grid.z > 0 &&
            grid.y <= 65535 && grid.z <= 65535,
        "a launch that no GPU takes");
  const auto count = static_cast<size_t>(threads);
  if (c.fibers.size() < count) c.fibers.resize(count);
  for (auto& slots : c.slots) slots.resize(count * kExchangeBytes);
  c.body = &body;
  c.size = dim3(static_cast<unsigned>(threads));
  c.grid = grid;
  c.looks = 0;
  c.begun = std::chrono::steady_clock::now();
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        c.index = {x, y, z};
        c.shared.assign(shared_bytes, std::byte{0xFF});
        for (int i = 0; i < threads; ++i) start(c.fibers[static_cast<size_t>(i)], i);
        run_cta(count);
      }
    }
  }
}

}  // namespace trireme::cuda::emulation

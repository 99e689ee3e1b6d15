// SPDX-License-Identifier: Apache-2.0
#include "launch/stop_signal.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "kernels/base/check.h"

namespace trireme {

StopSignal::StopSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signals_ = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  pokes_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  CHECK(signals_ >= 0 && pokes_ >= 0, "no file descriptor for signals");
}

StopSignal::~StopSignal() {
  close(signals_);
  close(pokes_);
}

StopSignal::Event StopSignal::wait(std::chrono::milliseconds timeout, int file) {
  pollfd watched[] = {{signals_, POLLIN, 0}, {pokes_, POLLIN, 0}, {file, POLLIN, 0}};
  // Interrupted is as good as timed out: callers look at their own clock.
  if (poll(watched, 3, timeout.count() < 0 ? -1 : static_cast<int>(timeout.count())) <= 0) {
    return Event::kTimeout;
  }
  if (take_signal()) return Event::kSignal;
  if (watched[2].revents != 0) return Event::kReadable;
  uint64_t count = 0;
  return read(pokes_, &count, sizeof count) == sizeof count ? Event::kPoke : Event::kTimeout;
}

bool StopSignal::wait_readable(int file) {
  for (;;) {
    pollfd watched[] = {{signals_, POLLIN, 0}, {file, POLLIN, 0}};
    if (poll(watched, 2, -1) <= 0) continue;
    if (take_signal()) return false;
    if (watched[1].revents != 0) return true;
  }
}

bool StopSignal::take_signal() {
  signalfd_siginfo info{};
  return read(signals_, &info, sizeof info) == sizeof info;
}

void StopSignal::poke() {
  const uint64_t one = 1;
  // Fails only when so many wait already that the count is full.
  [[maybe_unused]] const ssize_t written = write(pokes_, &one, sizeof one);
}

}  // namespace trireme

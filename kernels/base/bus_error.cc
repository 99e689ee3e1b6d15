// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/bus_error.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <cstring>

namespace trireme {
namespace {

// All of this runs in the handler: nothing that allocates or locks.

// A line of /proc/self/maps: "begin-end perms offset device inode   path", in hexadecimal.
constexpr size_t kLineBytes = PATH_MAX + 128;

uintptr_t read_hex(const char*& text) {
  uintptr_t value = 0;
  for (;; ++text) {
    const char c = *text;
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return value;
    value = value * 16 + static_cast<uintptr_t>(digit);
  }
}

// The path in a line whose map holds the address, else null.
const char* path_in(const char* line, uintptr_t address) {
  const uintptr_t begin = read_hex(line);
  if (*line++ != '-') return nullptr;
  const uintptr_t end = read_hex(line);
  return begin <= address && address < end ? std::strchr(line, '/') : nullptr;
}

void say(const char* text) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, std::strlen(text));
}

void say_which(uintptr_t address) {
  static char line[kLineBytes];
  static char bytes[4096];
  size_t length = 0;
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  for (ssize_t got = 0; maps >= 0 && (got = read(maps, bytes, sizeof bytes)) > 0;) {
    for (ssize_t i = 0; i < got; ++i) {
      if (bytes[i] != '\n') {
        if (length + 1 < kLineBytes) line[length++] = bytes[i];
        continue;
      }
      line[length] = '\0';
      length = 0;
      if (const char* const path = path_in(line, address)) return say(path);
    }
  }
  say("memory of a file");
}

extern "C" void on_bus_error(int number, siginfo_t* info, void*) {
  // Sent by somebody, or a fault of another kind: its end is the usual one.
  if (info->si_code != BUS_ADRERR) {
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  static std::atomic_flag told = ATOMIC_FLAG_INIT;
  while (told.test_and_set()) pause();  // another thread tells, and ends the process
  say("trireme: cannot read ");
  say_which(reinterpret_cast<uintptr_t>(info->si_addr));
  say(": it became shorter, its storage failed, or there was no room left for it; a checkpoint: "
      "copy it again; under /dev/shm: give that more room (MPI's messages lie there)\n");
  _exit(1);
}

}  // namespace

void explain_bus_errors() {
  [[maybe_unused]] static const bool explained = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGBUS, &action, nullptr) == 0;
  }();
}

}  // namespace trireme

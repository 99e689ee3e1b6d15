// SPDX-License-Identifier: Apache-2.0
// SIGTERM and SIGINT as something to wait for, beside what other threads have to tell.
#pragma once

#include <chrono>

namespace trireme {

class StopSignal {
 public:
  // Takes the signals away from every thread that starts later. REQUIRES: no other thread runs yet.
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;

  enum class Event { kSignal, kPoke, kReadable, kTimeout };
  // The next event; pokes since the last wait count as one. Negative: waits for ever. `file`: to be
  // told, too, when it has something to read.
  Event wait(std::chrono::milliseconds timeout, int file = -1);
  // Waits until there is something to read from `file`, or its end: true; or a signal came: false.
  bool wait_readable(int file);
  // True once for each signal.
  bool take_signal();
  void poke();  // any thread

 private:
  int signals_;
  int pokes_;
};

}  // namespace trireme

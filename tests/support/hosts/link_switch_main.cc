// SPDX-License-Identifier: Apache-2.0
// A switch between TAP devices whose links have a latency and a rate: this kernel's netem, which
// many lack.
//   link_switch DEVICE…        makes the devices, says "ready", and switches until stdin ends
// Lines on stdin, answered by "ok" or "error …" (PORT counts from 0):
//   link PORT LATENCY_US RATE_MBIT   of frames from and to this port; rate 0: unlimited
//   pull PORT | plug PORT            the cable: frames are lost without a word
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <queue>
#include <sstream>
#include <string>
#include <vector>

namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;
using Time = steady_clock::time_point;
using Mac = std::string;

constexpr size_t kFrameMax = 65536;
constexpr microseconds kQueueMax{200000};  // a frame that would wait longer for its link is dropped
constexpr int kFramesAtOnce = 64;          // of one port before the others get their turn

struct Frame {
  Time due;
  uint64_t order;  // of arrival, among those due together
  size_t port;
  std::string bytes;
  bool operator<(const Frame& other) const {  // std::priority_queue gives the largest
    return due != other.due ? due > other.due : order > other.order;
  }
};

struct Port {
  int fd = -1;
  microseconds latency{0};
  double bits_per_us = 0;  // 0: unlimited
  bool plugged = true;
  Time free_in, free_out;  // when the link has sent what it has, in either direction
};

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "link_switch: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

int make_tap(const char* name) {
  const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) die("cannot open /dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (std::strlen(name) >= IFNAMSIZ) die(std::string("too long a name: ") + name);
  std::strcpy(request.ifr_name, name);
  if (ioctl(fd, TUNSETIFF, &request) < 0) die(std::string("cannot make ") + name);
  return fd;
}

class Switch {
 public:
  explicit Switch(const std::vector<const char*>& devices) {
    for (const char* const device : devices) ports_.emplace_back().fd = make_tap(device);
  }

  void run() {
    std::vector<pollfd> waits{{STDIN_FILENO, POLLIN, 0}};
    for (const Port& port : ports_) waits.push_back({port.fd, POLLIN, 0});
    for (;;) {
      timespec timeout{};
      if (ppoll(waits.data(), waits.size(), until_next(timeout), nullptr) < 0 && errno != EINTR) {
        die("ppoll");
      }
      if (waits[0].revents != 0 && !read_orders()) return;
      for (size_t i = 0; i < ports_.size(); ++i) {
        if ((waits[i + 1].revents & POLLIN) != 0) receive(i);
      }
      deliver();
    }
  }

 private:
  timespec* until_next(timespec& timeout) const {
    if (frames_.empty()) return nullptr;
    const auto left =
        std::max<nanoseconds>(frames_.top().due - steady_clock::now(), nanoseconds(0));
    timeout.tv_sec = left.count() / 1000000000;
    timeout.tv_nsec = left.count() % 1000000000;
    return &timeout;
  }

  // False at the end of stdin.
  bool read_orders() {
    char bytes[4096];
    const ssize_t size = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (size <= 0) return false;
    orders_.append(bytes, static_cast<size_t>(size));
    for (size_t end; (end = orders_.find('\n')) != std::string::npos; orders_.erase(0, end + 1)) {
      std::puts(obey(orders_.substr(0, end))
                    ? "ok"
                    : "error: link PORT LATENCY_US RATE_MBIT, pull PORT, plug PORT");
    }
    std::fflush(stdout);
    return true;
  }

  bool obey(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    size_t index = 0;
    if (!(words >> verb >> index) || index >= ports_.size()) return false;
    Port& port = ports_[index];
    if (verb == "pull" || verb == "plug") {
      port.plugged = verb == "plug";
      return true;
    }
    int64_t latency_us = 0;
    double rate_mbit = 0;
    if (verb != "link" || !(words >> latency_us >> rate_mbit) || latency_us < 0 || rate_mbit < 0)
      return false;
    port.latency = microseconds(latency_us);
    port.bits_per_us = rate_mbit;
    return true;
  }

  void receive(size_t from) {
    static char bytes[kFrameMax];
    for (int count = 0; count < kFramesAtOnce; ++count) {
      const ssize_t size = read(ports_[from].fd, bytes, sizeof(bytes));
      if (size < 12) return;  // EAGAIN, or no frame; EIO: the device is down
      if (!ports_[from].plugged) continue;
      const Mac to(bytes, 6), source(bytes + 6, 6);
      home_[source] = from;
      const auto known = home_.find(to);
      for (size_t port = 0; port < ports_.size(); ++port) {
        if (port != from && (known == home_.end() || known->second == port)) {
          enqueue(from, port, std::string(bytes, static_cast<size_t>(size)));
        }
      }
    }
  }

  // When a link of this rate has sent so much, that is free at `free` and gets it at `start`.
  static bool transmit(Time& free, Time& start, double bits_per_us, size_t size) {
    if (bits_per_us == 0) return true;
    const Time begin = std::max(free, start);
    if (begin - start > kQueueMax) return false;
    free = start =
        begin + nanoseconds(static_cast<int64_t>(8e3 * static_cast<double>(size) / bits_per_us));
    return true;
  }

  void enqueue(size_t from, size_t to, std::string bytes) {
    Time at = steady_clock::now();
    Port &in = ports_[from], &out = ports_[to];
    if (!transmit(in.free_in, at, in.bits_per_us, bytes.size())) return;
    at += in.latency + out.latency;
    if (!transmit(out.free_out, at, out.bits_per_us, bytes.size())) return;
    frames_.push({at, order_++, to, std::move(bytes)});
  }

  void deliver() {
    while (!frames_.empty() && frames_.top().due <= steady_clock::now()) {
      const Frame& frame = frames_.top();
      const Port& port = ports_[frame.port];
      // A device that does not take it loses it, as a host with a full ring would.
      if (port.plugged) (void)!write(port.fd, frame.bytes.data(), frame.bytes.size());
      frames_.pop();
    }
  }

  std::vector<Port> ports_;
  std::map<Mac, size_t> home_;
  std::priority_queue<Frame> frames_;
  uint64_t order_ = 0;
  std::string orders_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: link_switch DEVICE…\n");
    return 2;
  }
  Switch link_switch(std::vector<const char*>(argv + 1, argv + argc));
  std::puts("ready");
  std::fflush(stdout);
  link_switch.run();
}

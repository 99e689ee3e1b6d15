// SPDX-License-Identifier: Apache-2.0
#include "launch/top.h"

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <mutex>
#include <optional>
#include <thread>

#include "kernels/base/error.h"
#include "launch/client.h"
#include "launch/stop_signal.h"
#include "launch/top_view.h"
#include "proto/inference.grpc.pb.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using SteadyClock = std::chrono::steady_clock;

constexpr milliseconds kLoadTime{2000};
constexpr milliseconds kRetry{1000};
constexpr milliseconds kLeastRedraw{100};
constexpr milliseconds kFirstWord{5000};

// The stream of health on a thread of its own; pokes `stop` at each message and at the end.
class Watch {
 public:
  Watch(v1::Cluster::Stub& stub, const std::string& token, StopSignal& stop) : stop_(stop) {
    add_token(context_, token);
    thread_ = std::thread([this, &stub] { run(stub); });
  }
  ~Watch() {
    context_.TryCancel();
    thread_.join();
  }

  // The latest message, once.
  std::optional<v1::ClusterHealth> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(latest_, std::nullopt);
  }
  std::optional<grpc::Status> ended() const {
    const std::lock_guard lock(mutex_);
    return ended_;
  }

 private:
  void run(v1::Cluster::Stub& stub) {
    const auto reader = stub.WatchHealth(&context_, {});
    v1::ClusterHealth health;
    while (reader->Read(&health)) {
      {
        const std::lock_guard lock(mutex_);
        latest_ = health;
      }
      stop_.poke();
    }
    const grpc::Status status = reader->Finish();
    {
      const std::lock_guard lock(mutex_);
      ended_ = status;
    }
    stop_.poke();
  }

  StopSignal& stop_;
  grpc::ClientContext context_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::optional<v1::ClusterHealth> latest_;
  std::optional<grpc::Status> ended_;
  std::thread thread_;
};

// The terminal as a page of its own, keys without echo; as it was before once this is gone.
class Screen {
 public:
  Screen() : keys_(isatty(STDIN_FILENO) == 1 && tcgetattr(STDIN_FILENO, &before_) == 0) {
    if (keys_) {
      termios raw = before_;
      raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
      // Ctrl-Z and Ctrl-\ would leave the terminal in this state.
      raw.c_cc[VSUSP] = raw.c_cc[VQUIT] = _POSIX_VDISABLE;
      tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    std::cout << "\033[?1049h\033[?25l" << std::flush;
  }
  ~Screen() {
    std::cout << "\033[?25h\033[?1049l" << std::flush;
    if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;

  // To poll; -1: there are no keys.
  int file() const { return keys_ ? STDIN_FILENO : -1; }
  bool quit_pressed() const {
    char key = 0;
    return read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q' || key == 4;
  }
  void show(const TopState& state, bool colour) const {
    winsize size{};
    TopStyle style;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
      style.width = size.ws_col;
      style.height = size.ws_row;
    }
    style.colour = colour;
    style.footer = keys_ ? "q quits" : "Ctrl-C quits";
    std::string page = "\033[H";
    int left = style.height > 0 ? style.height : INT32_MAX;
    for (const std::string& line : top_lines(state, style)) {
      if (left-- <= 0) break;
      page += line + "\033[K" + (left > 0 ? "\n" : "");
    }
    std::cout << page + "\033[J" << std::flush;
  }

 private:
  termios before_{};
  const bool keys_;
};

class Top {
 public:
  explicit Top(const TopFlags& flags)
      : flags_(flags), token_(token_of(flags)), channel_(make_channel(flags)) {
    stub_ = v1::Cluster::NewStub(channel_);
    state_.server = flags.server;
  }

  void once() {
    begin();
    refresh_load();
    print();
  }

  // A line at every change, until the server ends or a signal comes.
  void lines() {
    begin();
    for (;;) {
      refresh_load();
      print();
      if (!std::cout) return;  // nobody reads
      while (!take_health()) {
        if (watch_->ended()) throw_status(*watch_->ended());
        if (stop_.wait(milliseconds(-1)) == StopSignal::Event::kSignal) return;
      }
    }
  }

  void live() {
    wait_connected(*channel_, flags_);
    connect();
    const Screen screen;
    SteadyClock::time_point drawn{}, asked{};
    for (;;) {
      take_health();
      reconnect();
      const auto now = SteadyClock::now();
      if (now - asked >= flags_.interval) {
        asked = now;
        refresh_load();
      }
      if (now - drawn >= kLeastRedraw) {
        drawn = now;
        state_.health_age = std::chrono::duration_cast<milliseconds>(now - heard_);
        screen.show(state_, flags_.colour);
      }
      const milliseconds pause = std::min(flags_.interval, milliseconds(500));
      const StopSignal::Event event = stop_.wait(pause, screen.file());
      if (event == StopSignal::Event::kSignal) return;
      if (event == StopSignal::Event::kReadable && screen.quit_pressed()) return;
    }
  }

 private:
  void connect() { watch_.emplace(*stub_, token_, stop_); }

  // Connects and waits for the first word of health.
  void begin() {
    wait_connected(*channel_, flags_);
    connect();
    const auto until = SteadyClock::now() + kFirstWord;
    while (!take_health()) {
      if (watch_->ended()) throw_status(*watch_->ended());
      const auto left = std::chrono::ceil<milliseconds>(until - SteadyClock::now());
      if (left.count() <= 0 || stop_.wait(left) == StopSignal::Event::kSignal) {
        throw Error(Code::kDeadlineExceeded,
                    "the server at " + flags_.server + " did not tell its health");
      }
    }
  }

  bool take_health() {
    auto health = watch_->take();
    if (!health) return false;
    state_.health = std::move(health);
    state_.notice.clear();
    heard_ = SteadyClock::now();
    state_.health_age = milliseconds(0);
    return true;
  }

  // A server that ended may be started again, by trireme-run --relaunch perhaps.
  void reconnect() {
    const auto ended = watch_->ended();
    if (!ended) return;
    if (ended->error_code() == grpc::StatusCode::UNAUTHENTICATED) throw_status(*ended);
    if (!lost_) {
      lost_ = SteadyClock::now();
      state_.notice = "the server has ended, or cannot be reached; trying again until q: " +
                      ended->error_message();
      state_.health.reset();
      state_.load.reset();
      before_.reset();
    }
    if (SteadyClock::now() - *lost_ < kRetry) return;
    lost_.reset();
    const std::string notice = state_.notice;
    connect();
    state_.notice = notice;
  }

  // Without one where the server cannot tell: while it loads, or when it is gone.
  void refresh_load() {
    grpc::ClientContext context;
    add_token(context, token_);
    context.set_deadline(std::chrono::system_clock::now() + kLoadTime);
    v1::Load load;
    const auto now = SteadyClock::now();
    if (watch_->ended() || !stub_->GetLoad(&context, {}, &load).ok()) {
      state_.load.reset();
      state_.output_rate = state_.prompt_rate = std::nullopt;
      return;
    }
    if (before_ && before_->output_tokens() <= load.output_tokens()) {
      const double seconds = std::chrono::duration<double>(now - asked_).count();
      const auto rate = [&](uint64_t after, uint64_t earlier) {
        return static_cast<double>(after - earlier) / std::max(seconds, 1e-3);
      };
      state_.output_rate = rate(load.output_tokens(), before_->output_tokens());
      state_.prompt_rate = rate(load.prompt_tokens(), before_->prompt_tokens());
    }
    asked_ = now;
    before_ = load;
    state_.load = load;
  }

  void print() const {
    if (flags_.json) {
      std::cout << top_json(state_) << std::endl;
      return;
    }
    for (const std::string& line : top_lines(state_, {})) std::cout << line << '\n';
    std::cout << std::flush;
  }

  const TopFlags& flags_;
  StopSignal stop_;  // before any thread
  const std::string token_;
  const std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  TopState state_;
  SteadyClock::time_point heard_;
  std::optional<SteadyClock::time_point> lost_;
  SteadyClock::time_point asked_;
  std::optional<v1::Load> before_;
  std::optional<Watch> watch_;
};

}  // namespace

int top(const TopFlags& flags) {
  Top view(flags);
  if (flags.once || (!flags.json && isatty(STDOUT_FILENO) != 1)) {
    view.once();
  } else if (flags.json) {
    view.lines();
  } else {
    view.live();
  }
  return 0;
}

}  // namespace trireme

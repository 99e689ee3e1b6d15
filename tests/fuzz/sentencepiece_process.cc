// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/sentencepiece_process.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "kernels/base/check.h"

namespace trireme::fuzz {
namespace {

double processor_seconds(pid_t process) {
  clockid_t clock;
  timespec used{};
  const bool known = clock_getcpuclockid(process, &clock) == 0 && clock_gettime(clock, &used) == 0;
  return known ? static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec) : 0;
}

}  // namespace

SentencePieceProcess::SentencePieceProcess() {
  const std::string helper =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "fuzz_sentencepiece_helper";
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  child_ = fork();
  CHECK(child_ >= 0, "fork");
  if (child_ == 0) {
    dup2(ends[1], STDIN_FILENO);
    execl(helper.c_str(), helper.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  socket_ = ends[0];
}

SentencePieceProcess::~SentencePieceProcess() {
  close(socket_);
  waitpid(child_, nullptr, 0);
}

SentencePieceProcess& SentencePieceProcess::instance() {
  static SentencePieceProcess process;
  return process;
}

void SentencePieceProcess::load(ModelKind kind, std::string_view bytes) {
  constexpr double kPatienceS = 10;
  constexpr int kWallPatienceS = 300;
  const uint64_t size = bytes.size();
  std::string message(1, static_cast<char>(kind));
  message.append(reinterpret_cast<const char*>(&size), sizeof size).append(bytes);
  for (size_t sent = 0; sent < message.size();) {
    const ssize_t count = send(socket_, message.data() + sent, message.size() - sent, MSG_NOSIGNAL);
    CHECK(count > 0, "sentencepiece's process takes the model");
    sent += static_cast<size_t>(count);
  }
  // Processor time, and wall time only where it waits for something: the machine may be busy.
  const double before = processor_seconds(child_);
  pollfd wait = {socket_, POLLIN, 0};
  for (int seconds = 0; ::poll(&wait, 1, 1000) != 1; ++seconds) {
    CHECK(processor_seconds(child_) - before < kPatienceS && seconds < kWallPatienceS,
          "sentencepiece answers in time");
  }
  char answer = 0;
  CHECK(recv(socket_, &answer, 1, 0) == 1, "sentencepiece survives the model");
}

}  // namespace trireme::fuzz

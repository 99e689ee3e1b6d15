// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/sentencepiece_process.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "kernels/base/check.h"

namespace trireme::fuzz {

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
  constexpr int kPatienceMs = 10000;
  const uint64_t size = bytes.size();
  std::string message(1, static_cast<char>(kind));
  message.append(reinterpret_cast<const char*>(&size), sizeof size).append(bytes);
  for (size_t sent = 0; sent < message.size();) {
    const ssize_t count = send(socket_, message.data() + sent, message.size() - sent, MSG_NOSIGNAL);
    CHECK(count > 0, "sentencepiece's process takes the model");
    sent += static_cast<size_t>(count);
  }
  pollfd wait = {socket_, POLLIN, 0};
  CHECK(::poll(&wait, 1, kPatienceMs) == 1, "sentencepiece answers in time");
  char answer = 0;
  CHECK(recv(socket_, &answer, 1, 0) == 1, "sentencepiece survives the model");
}

}  // namespace trireme::fuzz

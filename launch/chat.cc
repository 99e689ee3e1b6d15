// SPDX-License-Identifier: Apache-2.0
#include "launch/chat.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "coordinator/auth.h"
#include "kernels/base/error.h"
#include "launch/stop_signal.h"
#include "proto/inference.grpc.pb.h"

namespace trireme {
namespace {

constexpr std::chrono::seconds kConnectTime{5};
// How soon Ctrl-C is looked at while an answer comes.
constexpr std::chrono::milliseconds kSignalPoll{50};

std::shared_ptr<grpc::ChannelCredentials> make_credentials(const ChatFlags& flags) {
  if (flags.tls_ca.empty()) return grpc::InsecureChannelCredentials();
  std::ifstream file(flags.tls_ca, std::ios::binary);
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  if (!file || ssl.pem_root_certs.empty()) {
    throw Error(Code::kNotFound, "cannot read --tls_ca " + flags.tls_ca + ": " +
                                     (file ? "it is empty" : std::strerror(errno)));
  }
  return grpc::SslCredentials(ssl);
}

[[noreturn]] void throw_status(const grpc::Status& status) {
  Code code = Code::kInternal;
  switch (status.error_code()) {
    // What the server lacks is no mistake in this command's options.
    case grpc::StatusCode::FAILED_PRECONDITION: code = Code::kUnavailable; break;
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::DATA_LOSS: break;
    default: code = static_cast<Code>(status.error_code());
  }
  throw Error(code, "the server did not answer: " + status.error_message());
}

// What a model says may hold bytes that command a terminal.
std::string for_terminal(std::string text) {
  std::erase_if(text,
                [](char c) { return (c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == 0x7f; });
  return text;
}

class Client {
 public:
  Client(const ChatFlags& flags, StopSignal& stop)
      : flags_(flags), stop_(stop), terminal_(isatty(STDOUT_FILENO) == 1) {
    if (!flags.token_file.empty()) token_ = read_token_file(flags.token_file);
    const auto channel = grpc::CreateChannel(flags.server, make_credentials(flags));
    if (!channel->WaitForConnected(std::chrono::system_clock::now() + kConnectTime)) {
      throw Error(Code::kUnavailable,
                  "cannot reach a server at " + flags.server +
                      (flags.tls_ca.empty() ? "" : " by TLS") +
                      "; start one with: trireme serve --model PATH, or name it with --server" +
                      (flags.tls_ca.empty() ? " (and --tls_ca if it uses TLS)" : ""));
    }
    stub_ = v1::Inference::NewStub(channel);
    if (!flags.system.empty()) add_turn("system", flags.system);
  }

  // Asks, prints the answer as it comes, and remembers both. Ctrl-C ends the answer. What an error
  // leaves unanswered is forgotten.
  grpc::Status ask(const std::string& text) {
    add_turn("user", text);
    std::string answer;
    const grpc::Status status = stream(answer);
    if (!answer.empty()) std::cout << std::endl;
    const bool stopped = status.error_code() == grpc::StatusCode::CANCELLED;
    if (status.ok() || (stopped && !answer.empty())) {
      add_turn("assistant", answer);
    } else {
      request_.mutable_messages()->RemoveLast();
    }
    return status;
  }

 private:
  void add_turn(const std::string& role, const std::string& content) {
    v1::ChatMessage& turn = *request_.add_messages();
    turn.set_role(role);
    turn.set_content(content);
  }

  grpc::Status stream(std::string& answer) {
    if (flags_.max_tokens) request_.set_max_tokens(*flags_.max_tokens);
    if (flags_.temperature) request_.mutable_sampling()->set_temperature(*flags_.temperature);
    if (flags_.seed) request_.mutable_sampling()->set_seed(*flags_.seed);
    grpc::ClientContext context;
    if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
    grpc::CompletionQueue queue;
    const auto reader = stub_->AsyncChat(&context, request_, &queue, nullptr);
    v1::GenerateReply reply;
    bool begun = false;
    while (wait(queue, context)) {
      if (begun && reply.has_delta()) show(reply.delta().text(), answer);
      begun = true;
      reader->Read(&reply, nullptr);
    }
    grpc::Status status;
    reader->Finish(&status, nullptr);
    wait(queue, context);
    return status;
  }

  // Until the operation under way is done: whether it succeeded.
  bool wait(grpc::CompletionQueue& queue, grpc::ClientContext& context) {
    for (;;) {
      void* tag = nullptr;
      bool ok = false;
      const auto until = std::chrono::system_clock::now() + kSignalPoll;
      if (queue.AsyncNext(&tag, &ok, until) == grpc::CompletionQueue::GOT_EVENT) return ok;
      if (stop_.take_signal()) context.TryCancel();
    }
  }

  void show(const std::string& text, std::string& answer) {
    answer += text;
    std::cout << (terminal_ ? for_terminal(text) : text) << std::flush;
  }

  const ChatFlags& flags_;
  StopSignal& stop_;
  const bool terminal_;
  std::string token_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  v1::ChatRequest request_;  // with the conversation so far
};

// False: the end of the input, or Ctrl-C.
bool read_line(StopSignal& stop, bool terminal, std::string& line) {
  if (terminal) std::cout << "> " << std::flush;
  // Lines that a pipe brought together wait in the buffer, where poll() does not see them.
  const bool buffered = std::cin.rdbuf()->in_avail() > 0;
  if (!buffered && !stop.wait_readable(STDIN_FILENO)) return false;
  return static_cast<bool>(std::getline(std::cin, line));
}

void converse(Client& client, StopSignal& stop) {
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (terminal) std::cout << "Ctrl-C stops an answer; /quit or Ctrl-D ends.\n";
  std::string line;
  while (read_line(stop, terminal, line)) {
    if (line == "/quit") return;
    if (line.empty()) continue;
    const grpc::Status status = client.ask(line);
    if (status.ok() || status.error_code() == grpc::StatusCode::CANCELLED) continue;
    const bool lost = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::UNAUTHENTICATED;
    if (lost || !terminal) throw_status(status);
    std::cerr << "trireme: " << status.error_message() << '\n';
  }
  if (terminal) std::cout << '\n';
}

}  // namespace

int chat(const ChatFlags& flags) {
  StopSignal stop;
  // stdin is polled: what a C stream would hold back must be visible to in_avail().
  std::ios::sync_with_stdio(false);
  Client client(flags, stop);
  if (flags.text.empty()) {
    converse(client, stop);
    return 0;
  }
  const grpc::Status status = client.ask(flags.text);
  if (status.error_code() == grpc::StatusCode::CANCELLED) {
    throw Error(Code::kCancelled, "the answer was stopped: " + status.error_message());
  }
  if (!status.ok()) throw_status(status);
  return 0;
}

}  // namespace trireme

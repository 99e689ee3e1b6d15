// SPDX-License-Identifier: Apache-2.0
#include "launch/chat.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <iostream>

#include "coordinator/private_file.h"
#include "kernels/base/error.h"
#include "launch/client.h"
#include "launch/stop_signal.h"
#include "proto/inference.grpc.pb.h"

namespace trireme {
namespace {

// How soon Ctrl-C is looked at while an answer comes.
constexpr std::chrono::milliseconds kSignalPoll{50};

class Client {
 public:
  Client(const ChatFlags& flags, StopSignal& stop)
      : flags_(flags), stop_(stop), terminal_(isatty(STDOUT_FILENO) == 1) {
    token_ = token_of(flags);
    const auto channel = make_channel(flags);
    wait_connected(*channel, flags);
    stub_ = v1::Inference::NewStub(channel);
    if (!flags.system.empty()) add_turn("system", flags.system);
    if (!flags.tools_file.empty()) {
      request_.set_tools_json(read_flag_file(flags.tools_file, "--tools"));
    }
  }

  // Asks, prints the answer as it comes, and remembers both. Ctrl-C ends the answer. What an error
  // leaves unanswered is forgotten. After tool calls the next texts are their results.
  grpc::Status ask(const std::string& text) {
    const int before = request_.messages_size();
    const std::deque<v1::ToolCall> open_before = open_calls_;
    if (open_calls_.empty()) {
      add_turn("user", text);
    } else {
      v1::ChatMessage& result = add_turn("tool", text);
      result.set_name(open_calls_.front().name());
      if (open_calls_.front().has_id()) result.set_tool_call_id(open_calls_.front().id());
      open_calls_.pop_front();
      if (!open_calls_.empty()) return grpc::Status::OK;
    }
    std::string answer;
    v1::Finished finished;
    const grpc::Status status = stream(answer, finished);
    if (!answer.empty()) std::cout << std::endl;
    const bool stopped = status.error_code() == grpc::StatusCode::CANCELLED;
    if (status.ok() || (stopped && !answer.empty())) {
      *add_turn("assistant", answer).mutable_tool_calls() = finished.tool_calls();
      for (const v1::ToolCall& call : finished.tool_calls()) show_call(call);
    } else {
      request_.mutable_messages()->DeleteSubrange(before, request_.messages_size() - before);
      open_calls_ = open_before;
    }
    return status;
  }

 private:
  v1::ChatMessage& add_turn(const std::string& role, const std::string& content) {
    v1::ChatMessage& turn = *request_.add_messages();
    turn.set_role(role);
    turn.set_content(content);
    return turn;
  }

  void show_call(const v1::ToolCall& call) {
    const std::string text = "calls " + call.name() + "(" + call.arguments_json() + ")";
    std::cout << (terminal_ ? for_terminal(text) : text) << std::endl;
    open_calls_.push_back(call);
  }

  grpc::Status stream(std::string& answer, v1::Finished& finished) {
    if (flags_.max_tokens) request_.set_max_tokens(*flags_.max_tokens);
    if (flags_.temperature) request_.mutable_sampling()->set_temperature(*flags_.temperature);
    if (flags_.seed) request_.mutable_sampling()->set_seed(*flags_.seed);
    grpc::ClientContext context;
    add_token(context, token_);
    grpc::CompletionQueue queue;
    const auto reader = stub_->AsyncChat(&context, request_, &queue, nullptr);
    v1::GenerateReply reply;
    bool begun = false;
    while (wait(queue, context)) {
      if (begun && reply.has_delta()) show(reply.delta().text(), answer);
      if (begun && reply.has_finished()) finished = reply.finished();
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
  v1::ChatRequest request_;              // with the conversation so far
  std::deque<v1::ToolCall> open_calls_;  // of the last answer, without a result yet
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
    std::cerr << "trireme: " << for_terminal(status.error_message()) << '\n';
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

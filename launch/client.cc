// SPDX-License-Identifier: Apache-2.0
#include "launch/client.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>

#include "coordinator/auth.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr std::chrono::seconds kConnectTime{5};

std::shared_ptr<grpc::ChannelCredentials> make_credentials(const ClientFlags& flags) {
  if (flags.tls_ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = read_file(flags.tls_ca, "--tls_ca");
  return grpc::SslCredentials(ssl);
}

}  // namespace

std::string read_file(const std::string& path, const std::string& flag) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty()) {
    throw Error(Code::kNotFound, "cannot read " + flag + " " + path + ": " +
                                     (file ? "it is empty" : std::strerror(errno)));
  }
  return text;
}

std::shared_ptr<grpc::Channel> make_channel(const ClientFlags& flags) {
  return grpc::CreateChannel(flags.server, make_credentials(flags));
}

void wait_connected(grpc::Channel& channel, const ClientFlags& flags) {
  if (channel.WaitForConnected(std::chrono::system_clock::now() + kConnectTime)) return;
  throw Error(Code::kUnavailable,
              "cannot reach a server at " + flags.server + (flags.tls_ca.empty() ? "" : " by TLS") +
                  "; start one with: trireme serve --model PATH, or name it with --server" +
                  (flags.tls_ca.empty() ? " (and --tls_ca if it uses TLS)" : ""));
}

std::string token_of(const ClientFlags& flags) {
  return flags.token_file.empty() ? "" : read_token_file(flags.token_file);
}

void add_token(grpc::ClientContext& context, const std::string& token) {
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
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

}  // namespace trireme

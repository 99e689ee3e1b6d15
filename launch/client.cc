// SPDX-License-Identifier: Apache-2.0
#include "launch/client.h"

#include <chrono>

#include "coordinator/auth.h"
#include "coordinator/private_file.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr std::chrono::seconds kConnectTime{5};

std::shared_ptr<grpc::ChannelCredentials> make_credentials(const ClientFlags& flags) {
  if (flags.tls_ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = read_flag_file(flags.tls_ca, "--tls_ca");
  return grpc::SslCredentials(ssl);
}

}  // namespace

std::shared_ptr<grpc::Channel> make_channel(const ClientFlags& flags) {
  grpc::ChannelArguments arguments;
  // gRPC would send even loopback by http_proxy, which many clusters set for the world outside.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else channels share a connection
  return grpc::CreateCustomChannel(flags.server, make_credentials(flags), arguments);
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

std::string for_terminal(std::string_view text) {
  std::string shown;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == 0x7f) continue;
    // The controls of U+0080 to U+009F, which xterm obeys: U+009B is as good as an escape and [.
    if (c == '\xc2' && i + 1 < text.size() && (text[i + 1] & 0xe0) == 0x80) {
      ++i;
      continue;
    }
    shown += c;
  }
  return shown;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "launch/client.h"

#include <grpcpp/generic/async_generic_service.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace trireme {
namespace {

// A cluster's proxy for the world outside knows nothing of a server on this machine.
TEST(Client, GoesByNoProxy) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  grpc::CallbackGenericService nothing;  // a server without any does not start
  builder.RegisterCallbackGenericService(&nothing);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  ClientFlags flags;
  flags.server = "127.0.0.1:" + std::to_string(port);
  setenv("http_proxy", "http://127.0.0.1:1", 1);
  const auto channel = make_channel(flags);
  EXPECT_NO_THROW(wait_connected(*channel, flags));
  unsetenv("http_proxy");
}

TEST(Client, CommandsNoTerminal) {
  EXPECT_EQ(for_terminal("a\x1b[2J\tb\n\x7fµ"), "a[2J\tb\nµ");
  // A control of eight bits, and letters that begin with the same byte.
  EXPECT_EQ(for_terminal("a\xc2\x9b"
                         "2Jµé\xc2"),
            "a2Jµé\xc2");
}

}  // namespace
}  // namespace trireme

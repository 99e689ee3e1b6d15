// SPDX-License-Identifier: Apache-2.0
// What the sub-commands that ask a server share: the way to it, and its errors as ours.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <string_view>

#include "launch/options.h"

namespace trireme {

// A connection of its own, as the flags want it, by no proxy, which need not stand yet. Throws
// kNotFound for
// --tls_ca.
std::shared_ptr<grpc::Channel> make_channel(const ClientFlags& flags);
// Waits until it stands. Throws kUnavailable, saying what to do.
void wait_connected(grpc::Channel& channel, const ClientFlags& flags);
// The token of --token_file, or "".
std::string token_of(const ClientFlags& flags);
void add_token(grpc::ClientContext& context, const std::string& token);

[[noreturn]] void throw_status(const grpc::Status& status);

// What a server says may hold bytes that command a terminal.
std::string for_terminal(std::string_view text);

}  // namespace trireme

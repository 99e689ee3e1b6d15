// SPDX-License-Identifier: Apache-2.0
// The one exception type of the project. Caught in three places only: launch/main.cc, the gRPC edge
// (coordinator/service*.cc) and the worker's loop, which reports it to the coordinator.
#pragma once

#include <stdexcept>
#include <string>

namespace trireme {

// gRPC's canonical codes that we use, with gRPC's numbers.
enum class Code {
  kCancelled = 1,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kUnauthenticated = 16,
};

const char* code_name(Code code);

// A message may quote a file or a peer: what() is UTF-8 of at most kMaxErrorBytes without control
// characters, so that a terminal, a log and a gRPC status can take it.
inline constexpr size_t kMaxErrorBytes = 2048;

// message: what could not be done: what was found, what was needed, what to do.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message);
  Code code() const { return code_; }

 private:
  Code code_;
};

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Messages in a stream of bytes: a 4-byte big-endian length, then the message.
#pragma once

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

// The message with its length in front. Throws kResourceExhausted if it is longer than `limit`,
// which the peer would refuse.
std::string make_frame(const google::protobuf::MessageLite& message, uint32_t limit);

// Cuts a stream into messages. Memory grows with what has come, never with what a length promises.
class FrameReader {
 public:
  explicit FrameReader(uint32_t limit) : limit_(limit) {}
  void append(std::string_view bytes);
  // The next whole message; valid until append().
  std::optional<std::string_view> next();
  // Why there will be no further message: a length above the limit. Empty while all is well.
  const std::string& error() const { return error_; }

 private:
  const uint32_t limit_;
  std::string bytes_;
  size_t begin_ = 0;  // of what next() has not returned
  std::string error_;
};

}  // namespace trireme

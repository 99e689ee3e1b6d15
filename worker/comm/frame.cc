// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/frame.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "kernels/base/error.h"
#include "worker/comm/control.h"

namespace trireme {
namespace {

constexpr size_t kLengthBytes = 4;
constexpr size_t kKeptBytes = 1 << 20;  // a buffer that grew beyond is given back once empty
constexpr size_t kHostsMax = 64;
constexpr std::string_view kAddressVersion = "trireme-control-1";

[[noreturn]] void refuse_address(const std::string& what) {
  throw Error(Code::kInvalidArgument,
              "cannot read the control address: " + what + "; every rank must run the same build");
}

bool is_numeric_host(const std::string& host) {
  in6_addr any{};
  return inet_pton(AF_INET, host.c_str(), &any) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &any) == 1;
}

template <class Number>
bool parse_number(std::string_view text, Number& value, int base) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, base);
  return error == std::errc() && stop == end;
}

}  // namespace

std::string make_frame(const google::protobuf::MessageLite& message, uint32_t limit) {
  const size_t size = message.ByteSizeLong();
  if (size > limit) {
    throw Error(Code::kResourceExhausted, "cannot send a control message of " +
                                              std::to_string(size) + " bytes: the limit is " +
                                              std::to_string(limit) + "; send less at once");
  }
  std::string frame(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i) {
    frame[i] = static_cast<char>(size >> (8 * (kLengthBytes - 1 - i)));
  }
  message.AppendToString(&frame);
  return frame;
}

void FrameReader::append(std::string_view bytes) {
  bytes_.erase(0, begin_);
  begin_ = 0;
  if (bytes_.empty() && bytes_.capacity() > kKeptBytes) std::string().swap(bytes_);
  bytes_.append(bytes);
}

std::optional<std::string_view> FrameReader::next() {
  const std::string_view rest = std::string_view(bytes_).substr(begin_);
  if (!error_.empty() || rest.size() < kLengthBytes) return std::nullopt;
  uint32_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length = length << 8 | static_cast<uint8_t>(rest[i]);
  }
  if (length > limit_) {
    error_ =
        "a message of " + std::to_string(length) + " bytes, the limit is " + std::to_string(limit_);
    return std::nullopt;
  }
  if (rest.size() - kLengthBytes < length) return std::nullopt;
  begin_ += kLengthBytes + length;
  return rest.substr(kLengthBytes, length);
}

// Lines: version, port, key, then one line per host.
std::string ControlAddress::serialise() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text = std::string(kAddressVersion) + "\n" + std::to_string(port) + "\n";
  for (const uint8_t byte : key) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  text += '\n';
  for (const std::string& host : hosts) text += host + '\n';
  return text;
}

ControlAddress ControlAddress::parse(const std::string& bytes) {
  std::istringstream lines(bytes);
  std::string line;
  if (!std::getline(lines, line) || line != kAddressVersion) refuse_address("wrong version");
  ControlAddress address;
  if (!std::getline(lines, line) || !parse_number(line, address.port, 10) || address.port == 0) {
    refuse_address("bad port");
  }
  if (!std::getline(lines, line) || line.size() != 2 * address.key.size()) {
    refuse_address("bad key");
  }
  for (size_t i = 0; i < address.key.size(); ++i) {
    if (!parse_number(std::string_view(line).substr(2 * i, 2), address.key[i], 16)) {
      refuse_address("bad key");
    }
  }
  while (std::getline(lines, line)) {
    if (!is_numeric_host(line) || address.hosts.size() == kHostsMax) refuse_address("bad host");
    address.hosts.push_back(line);
  }
  if (address.hosts.empty()) refuse_address("no host");
  return address;
}

}  // namespace trireme

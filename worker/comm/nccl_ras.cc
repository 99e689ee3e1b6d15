// SPDX-License-Identifier: Apache-2.0
// The protocol is lines of text: each side tells its version, the client what it wants, and the
// server answers until it closes. It asks all processes of the job first, and waits for those that
// do not answer, so it is told to wait for less than we do.
#include "worker/comm/nccl_ras.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "kernels/base/printable.h"
#include "worker/comm/socket.h"

namespace trireme {
namespace {

constexpr size_t kMostBytes = 8 << 10;
constexpr size_t kMostFaultBytes = 1000;
constexpr std::chrono::milliseconds kLook{20};  // whether to give up

class Conversation {
 public:
  Conversation(const FileDescriptor& connection, TimePoint deadline,
               const std::function<bool()>& give_up)
      : connection_(connection), deadline_(deadline), give_up_(give_up) {}

  bool send_line(const std::string& line) {
    return ready(POLLOUT) && send(connection_.get(), line.data(), line.size(), MSG_NOSIGNAL) ==
                                 static_cast<ssize_t>(line.size());
  }

  // Appends what comes until `text` has an end of line, or (`whole`) the server closes, or all that
  // is wanted has come. False when the deadline comes first.
  bool receive(bool whole, std::string& text) {
    while (text.size() < kMostBytes && (whole || text.find('\n') == text.npos)) {
      if (!ready(POLLIN)) return false;
      std::array<char, 1024> bytes;
      const ssize_t count = recv(connection_.get(), bytes.data(), bytes.size(), 0);
      if (count <= 0) return count == 0;
      text.append(bytes.data(), static_cast<size_t>(count));
    }
    return true;
  }

  // Says a line and hears one that begins so.
  bool exchange(const std::string& line, const std::string& answer) {
    std::string heard;
    return send_line(line) && receive(false, heard) && heard.starts_with(answer);
  }

 private:
  bool ready(short events) const {
    for (;;) {
      const TimePoint now = std::chrono::steady_clock::now();
      if (now >= deadline_ || (give_up_ && give_up_())) return false;
      if (wait_ready(connection_.get(), events, std::min(deadline_, now + kLook))) return true;
    }
  }

  const FileDescriptor& connection_;
  const TimePoint deadline_;
  const std::function<bool()>& give_up_;
};

template <class Take>
void for_each_line(const std::string& text, Take take) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    take(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

bool is_numeric(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> bytes;
  return inet_pton(AF_INET, host.c_str(), bytes.data()) == 1 ||
         inet_pton(AF_INET6, host.c_str(), bytes.data()) == 1;
}

std::string ask(const FileDescriptor& connection, TimePoint deadline,
                std::chrono::milliseconds timeout, const std::function<bool()>& give_up) {
  Conversation conversation(connection, deadline, give_up);
  const auto seconds =
      std::max<int64_t>(1, std::chrono::duration_cast<std::chrono::seconds>(timeout / 2).count());
  if (!conversation.exchange("CLIENT PROTOCOL 2\n", "SERVER PROTOCOL ") ||
      !conversation.exchange("TIMEOUT " + std::to_string(seconds) + "\n", "OK") ||
      !conversation.send_line("STATUS\n")) {
    return "";
  }
  std::string report;
  conversation.receive(true, report);  // what came in time is better than nothing
  report.resize(std::min(report.size(), kMostBytes));
  return report;
}

}  // namespace

NcclRasAddress nccl_ras_address(const google::protobuf::Map<std::string, std::string>& variables) {
  NcclRasAddress address;
  const auto enable = variables.find("NCCL_RAS_ENABLE");
  if (enable != variables.end() && enable->second == "0") return {{}, 0};
  const auto given = variables.find("NCCL_RAS_ADDR");
  if (given == variables.end() || given->second.empty()) return address;
  const std::string& text = given->second;
  const size_t colon = text.rfind(':');
  if (colon == text.npos) return {{}, 0};
  const auto [stop, error] =
      std::from_chars(text.data() + colon + 1, text.data() + text.size(), address.port);
  if (error != std::errc() || stop != text.data() + text.size()) return {{}, 0};
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host == "localhost") return address;
  if (!is_numeric(host)) return {{}, 0};
  return {{host}, address.port};
}

std::string read_nccl_ras(const NcclRasAddress& address, std::chrono::milliseconds timeout,
                          const std::function<bool()>& give_up) {
  const TimePoint deadline = std::chrono::steady_clock::now() + timeout;
  std::string report;
  for (const std::string& host : address.hosts) {
    const FileDescriptor connection = connect_socket(host, address.port, deadline);
    if (!connection) continue;
    report = ask(connection, deadline, timeout, give_up);
    if (!report.empty()) break;
  }
  std::string lines;
  for_each_line(report, [&](const std::string& text) {
    const std::string line = printable(text);
    if (!line.empty()) lines += (lines.empty() ? "" : "\n") + line;
  });
  return lines;
}

// Its last parts have the headings Errors and Warnings, each underlined.
std::string nccl_ras_faults(const std::string& report) {
  std::string faults;
  bool wrong = false;
  for_each_line(report, [&](const std::string& text) {
    if (text == "Errors" || text == "Warnings") {
      wrong = true;
      return;
    }
    const size_t begin = text.find_first_not_of(" \t");
    if (!wrong || begin == text.npos || text.find_first_not_of('=') == text.npos) return;
    faults += (faults.empty() ? "" : "; ") + text.substr(begin);
  });
  if (faults.size() > kMostFaultBytes) {
    faults.resize(kMostFaultBytes - 3);
    faults += "...";
  }
  return printable(faults);
}

}  // namespace trireme

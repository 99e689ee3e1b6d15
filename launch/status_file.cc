// SPDX-License-Identifier: Apache-2.0
#include "launch/status_file.h"

#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "coordinator/private_file.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "topology/probe.h"

namespace trireme {
namespace {

double unix_time() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) /
         1e3;
}

const char* name_of(StatusFile::State state) {
  switch (state) {
    case StatusFile::State::kStarting: return "starting";
    case StatusFile::State::kLoading: return "loading";
    case StatusFile::State::kServing: return "serving";
    case StatusFile::State::kDraining: return "draining";
    case StatusFile::State::kEnded: break;
  }
  return "ended";
}

}  // namespace

StatusFile::StatusFile(std::string path) : path_(std::move(path)), started_(unix_time()) {
  if (!path_.empty()) write_private_file(path_, to_json(), "--status_file");
}

// A field a line, so that a shell script can take one by sed.
std::string StatusFile::to_json() const {
  nlohmann::ordered_json json;
  json["pid"] = getpid();
  json["host"] = host_name();
  json["state"] = name_of(state_);
  json["address"] = address_;
  json["exit_status"] = nullptr;
  if (exit_status_) json["exit_status"] = *exit_status_;
  json["reason"] = reason_;
  json["first_failure"] = first_failure_;
  json["started"] = started_;
  json["updated"] = unix_time();
  // Reasons may quote what a client or a file said, in any bytes.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void StatusFile::update() {
  if (path_.empty()) return;
  try {
    write_private_file(path_, to_json(), "--status_file");
  } catch (const Error& error) {  // a full disk is no reason to end the service
    log_warn(error.what());
  }
}

void StatusFile::set_state(State state, const std::string& reason) {
  state_ = state;
  reason_ = reason;
  update();
}

void StatusFile::set_address(const std::string& address) {
  address_ = address;
  update();
}

void StatusFile::set_first_failure(const std::string& line) {
  if (!first_failure_.empty() || line.empty()) return;
  first_failure_ = line;
  update();
}

void StatusFile::end(int exit_status, const std::string& reason) {
  exit_status_ = exit_status;
  set_state(State::kEnded, reason);
}

}  // namespace trireme

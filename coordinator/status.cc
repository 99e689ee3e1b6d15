// SPDX-License-Identifier: Apache-2.0
#include "coordinator/status.h"

#include "proto/status_details.pb.h"

namespace trireme {
namespace {

// Trailers must fit into what clients accept, 8 KiB by default, when every byte is escaped as
// three. What has details is short.
constexpr size_t kMaxStatusBytes = 2048;

constexpr const char* kRetryInfo = "type.googleapis.com/google.rpc.RetryInfo";

}  // namespace

grpc::Status to_status(Code code, const std::string& message,
                       std::chrono::milliseconds retry_delay) {
  const auto number = static_cast<grpc::StatusCode>(code);
  const std::string told = message.substr(0, kMaxStatusBytes);
  if (retry_delay.count() <= 0) return {number, told};
  v1::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(retry_delay.count() / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(retry_delay.count() % 1000) *
                                         1'000'000);
  v1::StatusDetails details;
  details.set_code(number);  // these two again: clients compare them
  details.set_message(told);
  google::protobuf::Any& any = *details.add_details();
  any.set_type_url(kRetryInfo);
  retry.SerializeToString(any.mutable_value());
  return {number, told, details.SerializeAsString()};
}

std::optional<std::chrono::milliseconds> retry_delay_of(const grpc::Status& status) {
  v1::StatusDetails details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const google::protobuf::Any& any : details.details()) {
    v1::RetryInfo retry;
    if (any.type_url() != kRetryInfo || !retry.ParseFromString(any.value())) continue;
    return std::chrono::milliseconds(retry.retry_delay().seconds() * 1000 +
                                     retry.retry_delay().nanos() / 1'000'000);
  }
  return std::nullopt;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/device_transport.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "worker/comm/staged.h"

namespace trireme {
namespace {

std::string list(std::span<const int> ranks) {
  std::string text = "ranks";
  for (const int rank : ranks) text += " " + std::to_string(rank);
  return text;
}

// 22809 is 2.28.9.
std::string dotted(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

class DeviceTransport final : public Transport {
 public:
  DeviceTransport(Transport& host, Backend& backend, const DeviceTransportOptions& options)
      : host_(host), backend_(backend), options_(options) {
    if (!options.nccl_ranks.contains(options.rank)) return;
    nccl_ = make_nccl(backend, *options.cancellation, options.progress, options.library);
  }

  std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int tag) override {
    const bool by_nccl = ranks.size() > 1 && std::all_of(ranks.begin(), ranks.end(), [&](int rank) {
                           return options_.nccl_ranks.contains(rank);
                         });
    if (!backend_.in_host_memory() && ranks.size() > 1 && ranks.front() == options_.rank) {
      log_info("tensors of " + list(ranks) + " go " +
               (by_nccl ? "by NCCL " + dotted(nccl_->version()) : "through host memory"));
    }
    if (!by_nccl) {
      std::function<void()> settle;
      if (nccl_ != nullptr) settle = [nccl = nccl_] { nccl->settle(); };
      return stage_through_host(host_.make_group(ranks, tag), backend_, std::move(settle));
    }
    const auto self = std::find(ranks.begin(), ranks.end(), options_.rank);
    CHECK(self != ranks.end(), "a group is made by its members");
    std::string key;
    if (self == ranks.begin()) {
      key = nccl_->make_key();
      options_.keys->give(tag, key, ranks.subspan(1));
    } else {
      key = options_.keys->take(tag);
    }
    return nccl_->make_group(ranks, static_cast<int>(self - ranks.begin()), key);
  }

 private:
  Transport& host_;
  Backend& backend_;
  const DeviceTransportOptions options_;
  std::shared_ptr<Nccl> nccl_;  // where this rank may use it
};

}  // namespace

std::unique_ptr<Transport> make_device_transport(Transport& host, Backend& backend,
                                                 const DeviceTransportOptions& options) {
  return std::make_unique<DeviceTransport>(host, backend, options);
}

}  // namespace trireme

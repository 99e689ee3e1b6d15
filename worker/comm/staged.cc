// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/staged.h"

#include "kernels/base/check.h"

namespace trireme {
namespace {

// A tensor's place on the host. Grows to the largest size seen.
class HostCopy {
 public:
  HostCopy(Backend& backend, std::function<void()> settle)
      : backend_(backend), settle_(std::move(settle)) {}

  Tensor of(const Tensor& x) {
    CHECK(x.dtype == DType::kF32 && (x.rows <= 1 || x.stride == x.cols),
          "a tensor that travels is fp32 and contiguous");
    const auto values = static_cast<size_t>(x.rows * x.cols);
    if (values_.size() < values) values_.resize(values);
    return {values_.data(), DType::kF32, x.rows, x.cols};
  }
  Tensor downloaded(const Tensor& x) {
    const Tensor copy = of(x);
    if (settle_) settle_();
    backend_.download(copy.data, x.data, bytes(x));
    backend_.synchronize();
    return copy;
  }
  void reserve(size_t bytes) { values_.resize(bytes / sizeof(float)); }
  // The copy of x, which others have written, to x.
  void upload(const Tensor& x) { backend_.upload(x.data, values_.data(), bytes(x)); }

 private:
  static size_t bytes(const Tensor& x) {
    return static_cast<size_t>(x.rows * x.cols * element_size(x.dtype));
  }

  Backend& backend_;
  const std::function<void()> settle_;
  std::vector<float> values_;
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> host, Backend& backend,
                     const std::function<void()>& settle)
      : Communicator(host->share_progress()),
        host_(std::move(host)),
        one_(backend, settle),
        all_(backend, settle) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  // None of it in the memory of the tensors.
  uint64_t reserve(const StagingBytes& bytes, int to) override {
    host_->reserve(bytes, to);
    one_.reserve(bytes.copy);
    all_.reserve(bytes.gathered);
    return 0;
  }

  void all_reduce_sum(Tensor x) override {
    if (size() == 1) return;
    host_->all_reduce_sum(one_.downloaded(x));
    one_.upload(x);
  }

  void gather_columns(Tensor all, Tensor mine, std::span<const int> cols, int root) override {
    const bool gets = rank() == root;
    host_->gather_columns(gets ? all_.of(all) : all, one_.downloaded(mine), cols, root);
    if (gets) all_.upload(all);
  }

  void broadcast(Tensor x, int root) override {
    if (size() == 1) return;
    const bool gives = rank() == root;
    host_->broadcast(gives ? one_.downloaded(x) : one_.of(x), root);
    if (!gives) one_.upload(x);
  }

  void send(Tensor x, int to) override { host_->send(one_.downloaded(x), to); }

  void recv(Tensor x, int from) override {
    host_->recv(one_.of(x), from);
    one_.upload(x);
  }

 private:
  const std::unique_ptr<Communicator> host_;
  HostCopy one_, all_;
};

}  // namespace

std::unique_ptr<Communicator> stage_through_host(std::unique_ptr<Communicator> host,
                                                 Backend& backend, std::function<void()> settle) {
  if (backend.in_host_memory()) return host;
  return std::make_unique<StagedCommunicator>(std::move(host), backend, settle);
}

}  // namespace trireme

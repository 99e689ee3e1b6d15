// SPDX-License-Identifier: Apache-2.0
// NVIDIA's management library while it is in use: opened at run time, initialised, closed.
#pragma once

#include <string>

#include "topology/nvml_api.h"

namespace trireme::nvml {

class Library {
 public:
  explicit Library(const std::string& name);
  ~Library();
  Library(const Library&) = delete;

  // Why it cannot be used; empty: it can. Functions beyond those that every version has may be
  // null.
  const std::string& missing() const { return missing_; }
  const Api& api() const { return api_; }
  std::string words(Result result) const;

 private:
  Api api_ = {};
  void* library_ = nullptr;
  bool running_ = false;
  std::string missing_;
};

}  // namespace trireme::nvml

// SPDX-License-Identifier: Apache-2.0
#include "topology/nvml_library.h"

#include <dlfcn.h>

#include <cstring>

namespace trireme::nvml {

Library::Library(const std::string& name) {
  library_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) {
    const char* const reason = dlerror();
    missing_ = reason == nullptr ? name + " cannot be opened" : reason;
    return;
  }
  for (const Symbol& symbol : kSymbols) {
    void* const function = dlsym(library_, symbol.name);
    std::memcpy(reinterpret_cast<char*>(&api_) + symbol.offset, &function, sizeof function);
  }
  if (api_.init == nullptr || api_.count == nullptr || api_.handle == nullptr ||
      api_.pci == nullptr) {
    missing_ = name + " lacks functions that every version has";
    return;
  }
  const Result result = api_.init();
  running_ = result == kSuccess;
  if (!running_) missing_ = words(result);
}

Library::~Library() {
  if (running_ && api_.shutdown != nullptr) api_.shutdown();
  if (library_ != nullptr) dlclose(library_);
}

std::string Library::words(Result result) const {
  const char* const text = api_.error_string == nullptr ? nullptr : api_.error_string(result);
  return text == nullptr ? "error " + std::to_string(result) : text;
}

}  // namespace trireme::nvml

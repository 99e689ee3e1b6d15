// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/sentencepiece_loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>

#include "kernels/base/error.h"

namespace trireme {
namespace {

// The sanitizers' run time refuses RTLD_DEEPBIND; a namespace of its own isolates as well there.
constexpr bool kSanitized = TRIREME_SANITIZED;
constexpr const char* kModule = "trireme_sentencepiece.so";

std::filesystem::path find_module() {
  std::error_code ignored;
  const auto folder = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const auto& place : {folder, folder.parent_path()}) {
    if (std::filesystem::is_regular_file(place / kModule, ignored)) return place / kModule;
  }
  throw Error(Code::kNotFound, std::string("cannot read a tokenizer.model: ") + kModule +
                                   " is neither in " + folder.string() + " nor in " +
                                   folder.parent_path().string() +
                                   "; put it beside the executable");
}

const TriremeSentencePiece* open_module() {
  const std::string file = find_module().string();
  // DEEPBIND: the module's protobuf must find its own symbols before those of ours.
  void* module = kSanitized ? dlmopen(LM_ID_NEWLM, file.c_str(), RTLD_NOW | RTLD_LOCAL)
                            : dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  void* symbol = module != nullptr ? dlsym(module, "trireme_sentencepiece") : nullptr;
  if (symbol == nullptr) {
    const char* reason = dlerror();
    throw Error(Code::kFailedPrecondition, "cannot open " + file + ": " +
                                               (reason != nullptr ? reason : "no reason given") +
                                               "; install libsentencepiece0");
  }
  return reinterpret_cast<decltype(&trireme_sentencepiece)>(symbol)();
}

}  // namespace

const TriremeSentencePiece& sentencepiece_module() {
  static const TriremeSentencePiece* const api = open_module();
  return *api;
}

}  // namespace trireme

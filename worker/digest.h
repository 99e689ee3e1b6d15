// SPDX-License-Identifier: Apache-2.0
// SHA-256 of bytes as they come.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

struct evp_md_ctx_st;  // OpenSSL's

namespace trireme {

class Digest {
 public:
  Digest();
  void add(std::span<const std::byte> bytes);
  // 64 hexadecimal digits; nothing may be added after it.
  std::string hex();

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

std::string sha256(std::span<const std::byte> bytes);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Jinja as chat templates use it, with the settings of HuggingFace's transformers: trim_blocks,
// lstrip_blocks, loop controls, no escaping. There is no C++ Jinja in the distribution, and no
// Python is embedded here.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/tokenizer/jinja/value.h"

namespace trireme::jinja {

inline constexpr size_t kTemplateBytesMax = size_t{256} << 10;

class Template {
 public:
  // Throws kInvalidArgument where it is too large or no Jinja, kUnimplemented naming what this
  // engine does not know.
  explicit Template(std::string_view source);
  ~Template();
  Template(const Template&) = delete;

  // Throws kInvalidArgument where the template refuses this context, kUnimplemented as above, and
  // kResourceExhausted where it would run too long. date: what strftime_now gives, by its format.
  std::string render(const Dict& context, const Function& strftime_now) const;

 private:
  struct Parsed;
  std::unique_ptr<const Parsed> parsed_;
};

}  // namespace trireme::jinja

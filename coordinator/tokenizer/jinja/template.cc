// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/jinja/template.h"

#include "coordinator/tokenizer/jinja/evaluator.h"
#include "coordinator/tokenizer/jinja/parser.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

constexpr int64_t kWorkMax = 4'000'000;  // the largest template known takes some 10,000

}  // namespace

struct Template::Parsed {
  Body body;
};

Template::Template(std::string_view source) {
  if (source.size() > kTemplateBytesMax) {
    throw Error(Code::kInvalidArgument, "it has " + std::to_string(source.size()) +
                                            " bytes, at most " + std::to_string(kTemplateBytesMax) +
                                            " are taken");
  }
  require_utf8(source);
  parsed_ = std::make_unique<const Parsed>(Parsed{parse_template(source)});
}

Template::~Template() = default;

std::string Template::render(const Dict& context, const Function& strftime_now) const {
  Evaluator evaluator(context, {{"strftime_now", Value(strftime_now)}}, kWorkMax);
  return evaluator.run(parsed_->body);
}

}  // namespace trireme::jinja

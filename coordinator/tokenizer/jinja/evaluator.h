// SPDX-License-Identifier: Apache-2.0
// Runs a parsed template. Nothing of the machine can be reached from one: no file, no clock, no
// state.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "coordinator/tokenizer/jinja/ast.h"
#include "coordinator/tokenizer/jinja/builtins.h"

namespace trireme::jinja {

class Evaluator {
 public:
  Evaluator(const Dict& context, const std::vector<Member>& functions, int64_t work);
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;

  std::string run(const Body& body);

 private:
  struct Scope {
    const Scope* parent;
    std::unordered_map<std::string, Value> values;
  };
  enum class Flow { kOn, kBreak, kContinue };

  Flow run_body(const Body& body);
  Flow run_statement(const Statement& statement);
  Flow run_if(const Statement& statement);
  void run_for(const Statement& statement);
  void set(const std::vector<std::string>& names, const Value& value);
  void set_space(const Statement& statement);
  void set_block(const Statement& statement);
  void write(std::string_view text);
  // What `body` writes, with `scope` as the innermost one.
  std::string capture(const Body& body, Scope& scope);
  Value call_macro(const Statement& macro, const Arguments& arguments);

  Value evaluate(const Expression& expression);
  Value evaluate_kind(const Expression& expression);
  Value evaluate_name(const std::string& name) const;
  Value evaluate_dict(const Expression& expression);
  Value evaluate_binary(const Expression& expression);
  Value evaluate_compare(const Expression& expression);
  Value evaluate_call(const Expression& expression);
  Arguments evaluate_arguments(const Expression& expression);
  Value optional_part(const Expression& expression, size_t index);

  Value make_range(const Arguments& arguments);
  Value make_space(const Arguments& arguments);

  mutable Work work_;
  Scope root_{nullptr, {}};
  Scope* scope_ = &root_;
  std::string* out_ = nullptr;
  int depth_ = 0;  // of evaluate() in itself
  int calls_ = 0;  // of macros in macros
  // A namespace may hold itself; they are emptied at the end.
  std::vector<std::shared_ptr<Dict>> spaces_;
};

// Binary operators on two values: + - * / // % ** ~.
Value calculate(const std::string& symbol, const Value& left, const Value& right, Work& work);

}  // namespace trireme::jinja

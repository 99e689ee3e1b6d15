// SPDX-License-Identifier: Apache-2.0
// The values of expressions.
#include <utility>

#include "coordinator/tokenizer/jinja/evaluator.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

constexpr int kDepthOfEvaluation = 1500;  // macros and expressions together

}  // namespace

Value Evaluator::evaluate(const Expression& expression) {
  work_.spend(1);
  if (depth_ >= kDepthOfEvaluation) throw Error(Code::kResourceExhausted, "it is nested too deep");
  ++depth_;
  Value value = evaluate_kind(expression);
  --depth_;
  // Texts are copied; what is in lists is shared.
  if (value.text() != nullptr) work_.spend_bytes(value.text()->size());
  return value;
}

Value Evaluator::evaluate_kind(const Expression& expression) {
  const auto part = [&](size_t index) { return evaluate(*expression.parts[index]); };
  switch (expression.kind) {
    case Expression::Kind::kLiteral: return expression.value;
    case Expression::Kind::kName: return evaluate_name(expression.text);
    case Expression::Kind::kList: {
      List list;
      for (const ExpressionPtr& one : expression.parts) list.push_back(evaluate(*one));
      return Value(std::move(list));
    }
    case Expression::Kind::kDict: return evaluate_dict(expression);
    case Expression::Kind::kAnd: {
      Value left = part(0);
      return left.truthy() ? part(1) : left;
    }
    case Expression::Kind::kOr: {
      Value left = part(0);
      return left.truthy() ? left : part(1);
    }
    case Expression::Kind::kNot: return !part(0).truthy();
    case Expression::Kind::kUnary: {
      const Value value = part(0);
      if (!value.as_number()) fail_value(std::string("the sign of a ") + value.type_name());
      return expression.text == "-" ? calculate("-", Value(int64_t{0}), value, work_) : value;
    }
    case Expression::Kind::kBinary: return evaluate_binary(expression);
    case Expression::Kind::kCompare: return evaluate_compare(expression);
    case Expression::Kind::kConditional:
      if (part(0).truthy()) return part(1);
      return expression.parts[2] == nullptr ? Value(Value::Undefined{"an if without else"})
                                            : part(2);
    case Expression::Kind::kAttribute: return attribute(part(0), expression.text, work_);
    case Expression::Kind::kItem: {
      const Value object = part(0);
      return item(object, part(1), work_);
    }
    case Expression::Kind::kSlice: {
      const Value object = part(0);
      const Value start = optional_part(expression, 1);
      const Value stop = optional_part(expression, 2);
      return slice(object, start, stop, optional_part(expression, 3), work_);
    }
    case Expression::Kind::kCall: return evaluate_call(expression);
    case Expression::Kind::kFilter: {
      const Value value = part(0);
      return apply_filter(expression.text, value, evaluate_arguments(expression), work_);
    }
    case Expression::Kind::kTest: {
      const Value value = part(0);
      const Arguments arguments = evaluate_arguments(expression);
      work_.spend(value.weight());
      for (const Value& argument : arguments.positional) work_.spend(argument.weight());
      return apply_test(expression.text, value, arguments);
    }
  }
  return {};
}

Value Evaluator::optional_part(const Expression& expression, size_t index) {
  const ExpressionPtr& part = expression.parts[index];
  return part == nullptr ? Value() : evaluate(*part);
}

Value Evaluator::evaluate_name(const std::string& name) const {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    work_.spend(1);
    const auto found = scope->values.find(name);
    if (found != scope->values.end()) return found->second;
  }
  return Value(Value::Undefined{name});
}

Value Evaluator::evaluate_dict(const Expression& expression) {
  Dict dict;
  for (size_t i = 0; i < expression.parts.size(); i += 2) {
    const Value key = evaluate(*expression.parts[i]);
    if (key.text() == nullptr) fail_unknown("a dict whose keys are no texts");
    work_.spend(dict.size());  // a key is looked for one by one
    dict.set(*key.text(), evaluate(*expression.parts[i + 1]));
  }
  return Value(std::move(dict));
}

Value Evaluator::evaluate_binary(const Expression& expression) {
  const Value left = evaluate(*expression.parts[0]);
  return calculate(expression.text, left, evaluate(*expression.parts[1]), work_);
}

Value Evaluator::evaluate_compare(const Expression& expression) {
  Value left = evaluate(*expression.parts[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    const std::string& symbol = expression.operators[i];
    Value right = evaluate(*expression.parts[i + 1]);
    work_.spend(left.weight() + right.weight());
    bool is = false;
    if (symbol == "==" || symbol == "!=") {
      is = (left == right) == (symbol == "==");
    } else if (symbol == "in" || symbol == "not in") {
      is = contains(right, left) == (symbol == "in");
    } else {
      const bool swapped = symbol == ">" || symbol == "<=";
      const bool below = swapped ? less(right, left) : less(left, right);
      is = symbol.size() == 1 ? below : !below;
    }
    if (!is) return false;
    left = std::move(right);
  }
  return true;
}

Value Evaluator::evaluate_call(const Expression& expression) {
  const Value callee = evaluate(*expression.parts[0]);
  if (callee.is_undefined()) fail_value("'" + callee.undefined()->name + "' is undefined");
  if (callee.function() == nullptr)
    fail_value(std::string("a ") + callee.type_name() + " cannot be called");
  return (*callee.function())(evaluate_arguments(expression));
}

Arguments Evaluator::evaluate_arguments(const Expression& expression) {
  Arguments arguments;
  for (const auto& [name, value] : expression.arguments) {
    if (name.empty()) {
      arguments.positional.push_back(evaluate(*value));
    } else {
      arguments.named.emplace_back(name, evaluate(*value));
    }
  }
  return arguments;
}

}  // namespace trireme::jinja

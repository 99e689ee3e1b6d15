// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/jinja/evaluator.h"

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

constexpr int kCallsMax = 24;
constexpr int kRangeMax = 100'000;

// loop, in an iteration.
Value loop_value(const List& list, size_t index) {
  const auto at = static_cast<int64_t>(index);
  const auto size = static_cast<int64_t>(list.size());
  Dict loop;
  loop.set("index", at + 1);
  loop.set("index0", at);
  loop.set("revindex", size - at);
  loop.set("revindex0", size - at - 1);
  loop.set("first", at == 0);
  loop.set("last", at + 1 == size);
  loop.set("length", size);
  loop.set("depth", 1);
  loop.set("depth0", 0);
  if (at > 0) loop.set("previtem", list[index - 1]);
  if (at + 1 < size) loop.set("nextitem", list[index + 1]);
  loop.set("cycle", Function([index](const Arguments& arguments) {
             if (arguments.positional.empty()) fail_value("a cycle of nothing");
             return arguments.positional[index % arguments.positional.size()];
           }));
  return Value(std::move(loop));
}

}  // namespace

Evaluator::Evaluator(const Dict& context, const std::vector<Member>& functions, int64_t work)
    : work_(work) {
  for (const auto& [name, value] : functions) root_.values[name] = value;
  root_.values["range"] = Function([this](const Arguments& a) { return make_range(a); });
  root_.values["namespace"] = Function([this](const Arguments& a) { return make_space(a); });
  root_.values["dict"] = Function([](const Arguments& arguments) {
    if (!arguments.positional.empty()) fail_unknown("dict() of a value");
    Dict dict;
    for (const auto& [name, value] : arguments.named) dict.set(name, value);
    return Value(std::move(dict));
  });
  root_.values["raise_exception"] = Function([](const Arguments& arguments) -> Value {
    fail_value(to_text(argument(arguments, 0, "message")));
  });
  for (const auto& [name, value] : context.members()) root_.values[name] = value;
}

Evaluator::~Evaluator() {
  for (const auto& space : spaces_) *space = Dict();
}

std::string Evaluator::run(const Body& body) {
  std::string text;
  out_ = &text;
  run_body(body);
  return text;
}

void Evaluator::write(std::string_view text) {
  work_.spend_bytes(text.size());
  *out_ += text;
}

std::string Evaluator::capture(const Body& body, Scope& scope) {
  std::string text;
  std::string* const out = std::exchange(out_, &text);
  Scope* const before = std::exchange(scope_, &scope);
  run_body(body);
  scope_ = before;
  out_ = out;
  return text;
}

Evaluator::Flow Evaluator::run_body(const Body& body) {
  for (const auto& statement : body) {
    work_.spend(1);
    if (const Flow flow = run_statement(*statement); flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

Evaluator::Flow Evaluator::run_statement(const Statement& statement) {
  switch (statement.kind) {
    case Statement::Kind::kText: write(statement.text); break;
    case Statement::Kind::kOutput: write(to_text(evaluate(*statement.expression))); break;
    case Statement::Kind::kIf: return run_if(statement);
    case Statement::Kind::kFor: run_for(statement); break;
    case Statement::Kind::kSet: set(statement.names, evaluate(*statement.expression)); break;
    case Statement::Kind::kSetSpace: set_space(statement); break;
    case Statement::Kind::kSetBlock: set_block(statement); break;
    case Statement::Kind::kMacro:
      scope_->values[statement.names[0]] = Function([this, &statement](const Arguments& arguments) {
        return call_macro(statement, arguments);
      });
      break;
    case Statement::Kind::kBreak: return Flow::kBreak;
    case Statement::Kind::kContinue: return Flow::kContinue;
    case Statement::Kind::kGroup: return run_body(statement.body);
  }
  return Flow::kOn;
}

Evaluator::Flow Evaluator::run_if(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    if (condition == nullptr || evaluate(*condition).truthy()) return run_body(body);
  }
  return Flow::kOn;
}

void Evaluator::run_for(const Statement& statement) {
  List list = iterate(evaluate(*statement.expression), work_);
  Scope* const outer = scope_;
  if (statement.condition != nullptr) {
    std::erase_if(list, [&](const Value& value) {
      Scope scope{outer, {}};
      scope_ = &scope;
      set(statement.names, value);
      const bool keep = evaluate(*statement.condition).truthy();
      scope_ = outer;
      return !keep;
    });
  }
  if (list.empty()) {
    run_body(statement.other);
    return;
  }
  for (size_t i = 0; i < list.size(); ++i) {
    work_.spend(16);
    Scope scope{outer, {}};
    scope_ = &scope;
    set(statement.names, list[i]);
    scope.values["loop"] = loop_value(list, i);
    const Flow flow = run_body(statement.body);
    scope_ = outer;
    if (flow == Flow::kBreak) break;
  }
}

void Evaluator::set(const std::vector<std::string>& names, const Value& value) {
  if (names.size() == 1) {
    scope_->values[names[0]] = value;
    return;
  }
  const List list = iterate(value, work_);
  if (list.size() != names.size()) {
    fail_value(std::to_string(names.size()) + " variables are set from " +
               std::to_string(list.size()) + " values");
  }
  for (size_t i = 0; i < names.size(); ++i) scope_->values[names[i]] = list[i];
}

void Evaluator::set_space(const Statement& statement) {
  const Value space = evaluate_name(statement.names[0]);
  if (space.space() == nullptr) fail_value("'" + statement.names[0] + "' is no namespace");
  work_.spend(space.space()->members->size());
  space.space()->members->set(statement.names[1], evaluate(*statement.expression));
}

void Evaluator::set_block(const Statement& statement) {
  Scope scope{scope_, {}};
  scope.values[Statement::kBlockName] = Value(capture(statement.body, scope));
  Scope* const outer = std::exchange(scope_, &scope);
  const Value value = evaluate(*statement.expression);
  scope_ = outer;
  scope_->values[statement.names[0]] = value;
}

Value Evaluator::call_macro(const Statement& macro, const Arguments& arguments) {
  if (calls_ >= kCallsMax) {
    throw Error(Code::kResourceExhausted,
                "macros call each other more than " + std::to_string(kCallsMax) + " deep");
  }
  const size_t count = macro.names.size() - 1;
  const auto& name = macro.names[0];
  if (arguments.positional.size() > count)
    fail_value("too many arguments for the macro '" + name + "'");
  Scope scope{&root_, {}};
  for (size_t i = 0; i < count; ++i) {
    const std::string& parameter = macro.names[i + 1];
    const size_t without = count - macro.defaults.size();
    if (i < arguments.positional.size()) {
      scope.values[parameter] = arguments.positional[i];
    } else {
      const auto found =
          std::find_if(arguments.named.begin(), arguments.named.end(),
                       [&](const Member& member) { return member.first == parameter; });
      scope.values[parameter] = found != arguments.named.end() ? found->second
                                : i >= without ? evaluate(*macro.defaults[i - without])
                                               : Value(Value::Undefined{parameter});
    }
  }
  for (const auto& [given, value] : arguments.named) {
    if (std::find(macro.names.begin() + 1, macro.names.end(), given) == macro.names.end()) {
      fail_value("the macro '" + name + "' has no parameter '" + given + "'");
    }
  }
  ++calls_;
  Value text(capture(macro.body, scope));
  --calls_;
  return text;
}

Value Evaluator::make_range(const Arguments& arguments) {
  const size_t count = arguments.positional.size();
  const int64_t begin = count < 2 ? 0 : integer_argument(arguments, 0, {}, 0);
  const int64_t end = integer_argument(arguments, count < 2 ? 0 : 1, {}, 0);
  const int64_t step = integer_argument(arguments, 2, {}, 1);
  if (count == 0 || step == 0) fail_value("a range without an end, or of step 0");
  List list;
  for (int64_t at = begin; step > 0 ? at < end : at > end;) {
    if (list.size() >= kRangeMax)
      fail_value("a range of more than " + std::to_string(kRangeMax) + " numbers");
    work_.spend(1);
    list.push_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return Value(std::move(list));
}

Value Evaluator::make_space(const Arguments& arguments) {
  auto members = std::make_shared<Dict>();
  if (const Value first = argument(arguments, 0); first.dict() != nullptr) *members = *first.dict();
  for (const auto& [name, value] : arguments.named) members->set(name, value);
  spaces_.push_back(members);
  return Value(Value::Namespace{std::move(members)});
}

}  // namespace trireme::jinja

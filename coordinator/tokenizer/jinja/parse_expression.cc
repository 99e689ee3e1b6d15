// SPDX-License-Identifier: Apache-2.0
// The grammar and the precedence of Jinja's expressions.
#include <algorithm>

#include "coordinator/tokenizer/jinja/parser.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

constexpr int kTreeDepthMax = 150;
constexpr int kNestingMax = 60;  // of brackets and of unary operators

using Kind = Expression::Kind;

struct Nesting {
  explicit Nesting(int& the_depth) : depth(the_depth) { ++depth; }
  ~Nesting() { --depth; }
  int& depth;
};

}  // namespace

void ExpressionParser::fail(const std::string& what) const {
  throw Error(Code::kInvalidArgument, "line " + std::to_string(now().line) + ": " + what);
}

Token ExpressionParser::take() {
  Token token = tokens_[at_];
  if (token.kind != Token::Kind::kEnd) ++at_;
  return token;
}

bool ExpressionParser::skip_operator(std::string_view text) {
  if (!now().is(Token::Kind::kOperator, text)) return false;
  ++at_;
  return true;
}

bool ExpressionParser::skip_name(std::string_view text) {
  if (!now().is(Token::Kind::kName, text)) return false;
  ++at_;
  return true;
}

void ExpressionParser::require_operator(std::string_view text) {
  if (!skip_operator(text))
    fail("'" + std::string(text) + "' is missing before '" + now().text + "'");
}

std::string ExpressionParser::take_name(const char* what) {
  if (now().kind != Token::Kind::kName)
    fail(std::string(what) + " is missing before '" + now().text + "'");
  return take().text;
}

std::unique_ptr<Expression> ExpressionParser::make(Kind kind, std::string text) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->text = std::move(text);
  node->line = now().line;
  return node;
}

void ExpressionParser::add(Expression& parent, ExpressionPtr child) const {
  if (child != nullptr) parent.depth = std::max(parent.depth, child->depth + 1);
  if (parent.depth > kTreeDepthMax) fail("an expression is too long or too deep");
  parent.parts.push_back(std::move(child));
}

ExpressionPtr ExpressionParser::binary(Kind kind, std::string text, ExpressionPtr left,
                                       ExpressionPtr right) const {
  auto node = make(kind, std::move(text));
  add(*node, std::move(left));
  add(*node, std::move(right));
  return node;
}

ExpressionPtr ExpressionParser::parse_level(std::initializer_list<std::string_view> texts,
                                            ExpressionPtr (ExpressionParser::*operand)()) {
  ExpressionPtr left = (this->*operand)();
  while (now().kind == Token::Kind::kOperator &&
         std::find(texts.begin(), texts.end(), now().text) != texts.end()) {
    std::string text = take().text;
    left = binary(Kind::kBinary, std::move(text), std::move(left), (this->*operand)());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_expression() {
  const Nesting nesting(nesting_);
  if (nesting_ > kNestingMax) fail("an expression is nested too deep");
  ExpressionPtr value = parse_or();
  while (skip_name("if")) {
    auto node = make(Kind::kConditional);
    add(*node, parse_or());
    add(*node, std::move(value));
    add(*node, skip_name("else") ? parse_expression() : nullptr);
    value = std::move(node);
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_tuple(bool conditional) {
  const auto one = [&] { return conditional ? parse_expression() : parse_or(); };
  ExpressionPtr first = one();
  if (!now().is(Token::Kind::kOperator, ",")) return first;
  auto node = make(Kind::kList);
  add(*node, std::move(first));
  while (skip_operator(",")) {
    const bool ends = now().kind == Token::Kind::kOutputEnd ||
                      now().kind == Token::Kind::kBlockEnd || now().is(Token::Kind::kOperator, ")");
    if (ends) break;
    add(*node, one());
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (skip_name("or")) left = binary(Kind::kOr, {}, std::move(left), parse_and());
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (skip_name("and")) left = binary(Kind::kAnd, {}, std::move(left), parse_not());
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  const Nesting nesting(nesting_);
  if (nesting_ > kNestingMax) fail("an expression is nested too deep");
  if (!skip_name("not")) return parse_compare();
  auto node = make(Kind::kNot);
  add(*node, parse_not());
  return node;
}

ExpressionPtr ExpressionParser::parse_compare() {
  ExpressionPtr first = parse_sum();
  std::unique_ptr<Expression> node;
  while (true) {
    std::string text;
    if (now().kind == Token::Kind::kOperator) {
      constexpr std::string_view kCompares[] = {"==", "!=", "<", "<=", ">", ">="};
      if (std::find(std::begin(kCompares), std::end(kCompares), now().text) != std::end(kCompares))
        text = take().text;
    } else if (skip_name("in")) {
      text = "in";
    } else if (now().is(Token::Kind::kName, "not") && ahead().is(Token::Kind::kName, "in")) {
      take();
      take();
      text = "not in";
    }
    if (text.empty()) break;
    if (node == nullptr) {
      node = make(Kind::kCompare);
      add(*node, std::move(first));
    }
    node->operators.push_back(std::move(text));
    add(*node, parse_sum());
  }
  return node == nullptr ? std::move(first) : ExpressionPtr(std::move(node));
}

ExpressionPtr ExpressionParser::parse_sum() {
  return parse_level({"+", "-"}, &ExpressionParser::parse_concat);
}
ExpressionPtr ExpressionParser::parse_concat() {
  return parse_level({"~"}, &ExpressionParser::parse_product);
}
ExpressionPtr ExpressionParser::parse_product() {
  return parse_level({"*", "/", "//", "%"}, &ExpressionParser::parse_power);
}
ExpressionPtr ExpressionParser::parse_power() {
  return parse_level({"**"}, &ExpressionParser::parse_filtered);
}

ExpressionPtr ExpressionParser::parse_filtered() { return parse_filters(parse_unary()); }

ExpressionPtr ExpressionParser::parse_unary() {
  const Nesting nesting(nesting_);
  if (nesting_ > kNestingMax) fail("an expression is nested too deep");
  if (!now().is(Token::Kind::kOperator, "-") && !now().is(Token::Kind::kOperator, "+")) {
    return parse_postfix(parse_primary());
  }
  auto node = make(Kind::kUnary, take().text);
  add(*node, parse_unary());
  return node;
}

ExpressionPtr ExpressionParser::parse_primary() {
  const Token token = now();
  if (token.kind == Token::Kind::kString) {
    auto node = make(Kind::kLiteral);
    std::string text;
    while (now().kind == Token::Kind::kString) text += take().text;
    node->value = Value(std::move(text));
    return node;
  }
  if (token.kind == Token::Kind::kNumber) {
    auto node = make(Kind::kLiteral);
    node->value = take().value;
    return node;
  }
  if (token.kind == Token::Kind::kName) {
    auto node = make(Kind::kName, take().text);
    const std::string& name = node->text;
    const bool is_true = name == "true" || name == "True";
    if (is_true || name == "false" || name == "False") node->value = Value(is_true);
    if (is_true || name == "false" || name == "False" || name == "none" || name == "None")
      node->kind = Kind::kLiteral;
    return node;
  }
  if (skip_operator("[")) return parse_list();
  if (skip_operator("{")) return parse_dict();
  if (!skip_operator("(")) fail("an expression is missing before '" + token.text + "'");
  if (skip_operator(")")) return make(Kind::kList);
  ExpressionPtr value = parse_tuple(true);
  require_operator(")");
  return value;
}

ExpressionPtr ExpressionParser::parse_list() {
  auto node = make(Kind::kList);
  while (!skip_operator("]")) {
    if (!node->parts.empty()) {
      require_operator(",");
      if (skip_operator("]")) break;
    }
    add(*node, parse_expression());
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_dict() {
  auto node = make(Kind::kDict);
  while (!skip_operator("}")) {
    if (!node->parts.empty()) {
      require_operator(",");
      if (skip_operator("}")) break;
    }
    add(*node, parse_expression());
    require_operator(":");
    add(*node, parse_expression());
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr value) {
  while (true) {
    if (skip_operator(".")) {
      const bool index = now().kind == Token::Kind::kNumber;
      auto node = make(index ? Kind::kItem : Kind::kAttribute);
      if (!index) node->text = take_name("an attribute");
      add(*node, std::move(value));
      if (index) {
        auto key = make(Kind::kLiteral);
        key->value = take().value;
        add(*node, std::move(key));
      }
      value = std::move(node);
    } else if (skip_operator("[")) {
      value = parse_subscript(std::move(value));
    } else if (now().is(Token::Kind::kOperator, "(")) {
      auto node = make(Kind::kCall);
      add(*node, std::move(value));
      parse_arguments(*node);
      value = std::move(node);
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr value) {
  const auto ends = [&] {
    return now().is(Token::Kind::kOperator, ":") || now().is(Token::Kind::kOperator, "]");
  };
  ExpressionPtr first = ends() ? nullptr : parse_expression();
  if (first != nullptr && skip_operator("]"))
    return binary(Kind::kItem, {}, std::move(value), std::move(first));
  auto node = make(Kind::kSlice);
  add(*node, std::move(value));
  add(*node, std::move(first));
  require_operator(":");
  add(*node, ends() ? nullptr : parse_expression());
  add(*node, skip_operator(":") && !ends() ? parse_expression() : nullptr);
  require_operator("]");
  return node;
}

void ExpressionParser::parse_arguments(Expression& call) {
  require_operator("(");
  bool first = true;
  while (!skip_operator(")")) {
    if (!first) {
      require_operator(",");
      if (skip_operator(")")) break;
    }
    first = false;
    std::string name;
    if (now().kind == Token::Kind::kName && ahead().is(Token::Kind::kOperator, "=")) {
      name = take().text;
      take();
    } else if (!call.arguments.empty() && !call.arguments.back().first.empty()) {
      fail("a positional argument stands behind a named one");
    }
    ExpressionPtr value = parse_expression();
    call.depth = std::max(call.depth, value->depth + 1);
    call.arguments.emplace_back(std::move(name), std::move(value));
  }
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr value) {
  while (true) {
    if (skip_operator("|")) {
      auto node = make(Kind::kFilter);
      node->text = take_name("the name of a filter");
      add(*node, std::move(value));
      if (now().is(Token::Kind::kOperator, "(")) parse_arguments(*node);
      value = std::move(node);
    } else if (skip_name("is")) {
      value = parse_test(std::move(value));
    } else if (now().is(Token::Kind::kOperator, "(")) {
      auto node = make(Kind::kCall);
      add(*node, std::move(value));
      parse_arguments(*node);
      value = std::move(node);
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr value) {
  const bool negated = skip_name("not");
  auto node = make(Kind::kTest);
  node->text = take_name("the name of a test");
  add(*node, std::move(value));
  const Token& next = now();
  const bool word = next.kind == Token::Kind::kName && next.text != "else" && next.text != "or" &&
                    next.text != "and" && next.text != "is";
  const bool literal = next.kind == Token::Kind::kString || next.kind == Token::Kind::kNumber ||
                       next.is(Token::Kind::kOperator, "[") || next.is(Token::Kind::kOperator, "{");
  if (next.is(Token::Kind::kOperator, "(")) {
    parse_arguments(*node);
  } else if (word || literal) {
    ExpressionPtr argument = parse_postfix(parse_primary());
    node->depth = std::max(node->depth, argument->depth + 1);
    node->arguments.emplace_back("", std::move(argument));
  }
  if (!negated) return node;
  auto opposite = make(Kind::kNot);
  add(*opposite, std::move(node));
  return opposite;
}

}  // namespace trireme::jinja

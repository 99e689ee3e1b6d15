// SPDX-License-Identifier: Apache-2.0
// From the tokens of a template to its tree: statements here, expressions in a class of their own.
#pragma once

#include <vector>

#include "coordinator/tokenizer/jinja/ast.h"
#include "coordinator/tokenizer/jinja/lexer.h"

namespace trireme::jinja {

// Throws kInvalidArgument for what is no template, kUnimplemented naming a statement that is not
// known; both name the line.
Body parse_template(std::string_view source);

// The expression's half, used by the statements'. Where a tree would be too deep to be walked,
// throws.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  ExpressionPtr parse_expression();  // with a conditional
  ExpressionPtr parse_or();
  ExpressionPtr parse_tuple(bool conditional);  // one expression, or several with commas
  ExpressionPtr parse_filters(ExpressionPtr value);

  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take();
  bool skip_operator(std::string_view text);
  bool skip_name(std::string_view text);
  void require_operator(std::string_view text);
  std::string take_name(const char* what);
  [[noreturn]] void fail(const std::string& what) const;

 private:
  std::unique_ptr<Expression> make(Expression::Kind kind, std::string text = {}) const;
  void add(Expression& parent, ExpressionPtr child) const;  // child may be null
  ExpressionPtr binary(Expression::Kind kind, std::string text, ExpressionPtr left,
                       ExpressionPtr right) const;
  // One level of left-associative operators of `texts`, over operands that `operand` parses.
  ExpressionPtr parse_level(std::initializer_list<std::string_view> texts,
                            ExpressionPtr (ExpressionParser::*operand)());

  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_filtered();  // a unary one with filters and tests behind it
  ExpressionPtr parse_unary();
  ExpressionPtr parse_primary();
  ExpressionPtr parse_postfix(ExpressionPtr value);
  ExpressionPtr parse_subscript(ExpressionPtr value);
  ExpressionPtr parse_test(ExpressionPtr value);
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  void parse_arguments(Expression& call);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace trireme::jinja

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/jinja/parser.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

constexpr int kBlocksMax = 40;  // inside of one another

class TemplateParser final : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body run() {
    Body body = parse_body({});
    if (now().kind != Token::Kind::kEnd) fail("'" + now().text + "' ends nothing");
    return body;
  }

 private:
  using Statements = std::initializer_list<std::string_view>;

  // Up to a block whose name is one of `ends`; its tag is taken up to the name.
  Body parse_body(Statements ends) {
    if (++blocks_ > kBlocksMax) fail("blocks are nested too deep");
    Body body;
    while (now().kind != Token::Kind::kEnd) {
      const Token token = take();
      if (token.kind == Token::Kind::kText) {
        auto text = statement(Statement::Kind::kText);
        text->text = token.text;
        body.push_back(std::move(text));
      } else if (token.kind == Token::Kind::kOutputBegin) {
        auto output = statement(Statement::Kind::kOutput);
        output->expression = parse_tuple(true);
        if (now().kind != Token::Kind::kOutputEnd)
          fail("'}}' is missing before '" + now().text + "'");
        take();
        body.push_back(std::move(output));
      } else {
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) break;
        const std::string name = take_name("the name of a statement");
        body.push_back(parse_statement(name));
      }
    }
    --blocks_;
    if (ends.size() > 0 && now().kind == Token::Kind::kEnd) fail("a block has no end");
    return body;
  }

  std::unique_ptr<Statement> statement(Statement::Kind kind) const {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = now().line;
    return node;
  }

  void end_block() {
    if (now().kind != Token::Kind::kBlockEnd) fail("'%}' is missing before '" + now().text + "'");
    take();
  }
  // The tag of `name`, whose beginning parse_body took.
  void end_block(const char* name) {
    if (!skip_name(name))
      fail("'" + std::string(name) + "' is missing before '" + now().text + "'");
    end_block();
  }

  std::unique_ptr<Statement> parse_statement(const std::string& name) {
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "break" || name == "continue") {
      auto node = statement(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
      if (loops_ == 0) fail(name + " stands outside of a loop");
      end_block();
      return node;
    }
    if (name == "generation") {  // marks what a trainer learns; prints as it is
      auto node = statement(Statement::Kind::kGroup);
      end_block();
      node->body = parse_body({"endgeneration"});
      end_block("endgeneration");
      return node;
    }
    throw Error(Code::kUnimplemented,
                "line " + std::to_string(now().line) + ": the statement '" + name + "'");
  }

  std::unique_ptr<Statement> parse_if() {
    auto node = statement(Statement::Kind::kIf);
    ExpressionPtr condition = parse_tuple(true);
    while (true) {
      end_block();
      node->branches.emplace_back(std::move(condition), parse_body({"elif", "else", "endif"}));
      const std::string next = take_name("endif");
      const bool was_else = node->branches.back().first == nullptr;
      if (next == "endif") break;
      if (was_else) fail("'" + next + "' stands behind else");
      condition = next == "elif" ? parse_tuple(true) : nullptr;
    }
    end_block();
    return node;
  }

  std::unique_ptr<Statement> parse_for() {
    auto node = statement(Statement::Kind::kFor);
    const bool bracket = skip_operator("(");
    do {
      node->names.push_back(take_name("the name of a loop's variable"));
    } while (skip_operator(","));
    if (bracket) require_operator(")");
    if (!skip_name("in")) fail("'in' is missing before '" + now().text + "'");
    node->expression = parse_tuple(false);
    if (skip_name("if")) node->condition = parse_expression();
    if (now().is(Token::Kind::kName, "recursive")) {
      throw Error(Code::kUnimplemented,
                  "line " + std::to_string(now().line) + ": a recursive loop");
    }
    end_block();
    ++loops_;
    node->body = parse_body({"else", "endfor"});
    --loops_;
    if (skip_name("else")) {
      end_block();
      node->other = parse_body({"endfor"});
    }
    end_block("endfor");
    return node;
  }

  std::unique_ptr<Statement> parse_set() {
    auto node = statement(Statement::Kind::kSet);
    node->names.push_back(take_name("the name of a variable"));
    if (skip_operator(".")) {
      node->kind = Statement::Kind::kSetSpace;
      node->names.push_back(take_name("an attribute"));
    } else {
      while (skip_operator(",")) node->names.push_back(take_name("the name of a variable"));
    }
    if (skip_operator("=")) {
      node->expression = parse_tuple(true);
      end_block();
      return node;
    }
    if (node->kind != Statement::Kind::kSet || node->names.size() > 1) fail("'=' is missing");
    node->kind = Statement::Kind::kSetBlock;
    auto text = std::make_unique<Expression>();
    text->kind = Expression::Kind::kName;
    text->text = Statement::kBlockName;
    node->expression = parse_filters(std::move(text));
    end_block();
    node->body = parse_body({"endset"});
    end_block("endset");
    return node;
  }

  std::unique_ptr<Statement> parse_macro() {
    auto node = statement(Statement::Kind::kMacro);
    node->names.push_back(take_name("the name of a macro"));
    require_operator("(");
    while (!skip_operator(")")) {
      if (node->names.size() > 1) require_operator(",");
      node->names.push_back(take_name("a parameter"));
      if (skip_operator("=")) {
        node->defaults.push_back(parse_expression());
      } else if (!node->defaults.empty()) {
        fail("a parameter without a default stands behind one with it");
      }
    }
    end_block();
    const int loops = std::exchange(loops_, 0);
    node->body = parse_body({"endmacro"});
    loops_ = loops;
    end_block("endmacro");
    return node;
  }

  int blocks_ = 0;
  int loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) {
  return TemplateParser(tokenize_template(source)).run();
}

}  // namespace trireme::jinja

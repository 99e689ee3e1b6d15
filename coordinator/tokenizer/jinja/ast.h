// SPDX-License-Identifier: Apache-2.0
// A template, parsed. Expressions have one form, so that evaluation is one switch.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/tokenizer/jinja/value.h"

namespace trireme::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

struct Expression {
  enum class Kind {
    kLiteral,  // value
    kName,     // text
    kList,     // parts; tuples too
    kDict,     // parts: key, value, key, value, ...
    kAnd,      // parts: left, right
    kOr,
    kNot,          // parts: one
    kUnary,        // text: - or +
    kBinary,       // text: + - * / // % ** ~
    kCompare,      // parts: operands; operators between them, as Python chains them
    kConditional,  // parts: condition, then, otherwise (may be null)
    kAttribute,    // parts: object; text
    kItem,         // parts: object, key
    kSlice,        // parts: object, start, stop, step (each may be null)
    kCall,         // parts: function; arguments
    kFilter,       // text; parts: value; arguments
    kTest,         // text; parts: value; arguments
  };
  Kind kind = Kind::kLiteral;
  std::string text = {};
  Value value = {};
  std::vector<ExpressionPtr> parts = {};
  std::vector<std::string> operators = {};
  std::vector<std::pair<std::string, ExpressionPtr>> arguments =
      {};  // name: empty for a positional one
  int line = 0;
  int depth = 1;  // of the tree
};

struct Statement;
using Body = std::vector<std::unique_ptr<const Statement>>;

struct Statement {
  enum class Kind {
    kText,      // text
    kOutput,    // expression
    kIf,        // branches: condition (null: else) and body
    kFor,       // names: targets; expression: iterated; condition; body; other: where nothing was
                // iterated
    kSet,       // names: targets; expression
    kSetSpace,  // names: namespace, attribute; expression
    kSetBlock,  // names: target; body; filters on its text in expression, of the name kBlockName
    kMacro,     // names: its own, then parameters; defaults; body
    kBreak,
    kContinue,
    kGroup,  // body
  };
  static constexpr const char* kBlockName = " block";  // no template can write it

  Kind kind = Kind::kText;
  std::string text = {};
  std::vector<std::string> names = {};
  ExpressionPtr expression = {};
  ExpressionPtr condition = {};
  std::vector<ExpressionPtr> defaults = {};  // of the last parameters
  std::vector<std::pair<ExpressionPtr, Body>> branches = {};
  Body body = {};
  Body other = {};
  int line = 0;
};

}  // namespace trireme::jinja

// SPDX-License-Identifier: Apache-2.0
#include "launch/agreement.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"

namespace trireme {
namespace {

using Lines = std::vector<std::string>;
using Values = std::vector<std::pair<std::string, std::string>>;

// Rank r on host h<r / 2>.
std::vector<Statement> stated(const std::vector<Values>& ranks) {
  std::vector<Statement> statements;
  for (const Values& values : ranks) {
    const int rank = static_cast<int>(statements.size());
    Statement& statement = statements.emplace_back();
    statement.rank = rank;
    statement.host = "h" + std::to_string(rank / 2);
    for (const auto& [field, value] : values) {
      for (auto* const facts :
           {statement.facts.mutable_must_agree(), statement.facts.mutable_may_differ()}) {
        Fact& fact = *facts->Add();
        fact.set_field(field);
        fact.set_value(value);
      }
    }
  }
  return statements;
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
}

std::string refusal(const std::vector<Statement>& statements) {
  try {
    require_agreement("start", statements);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kFailedPrecondition);
    return error.what();
  }
  return "";
}

TEST(Agreement, OfAll) {
  const auto same = stated({{{"--tp", "1"}, {"MPI", "x"}}, {{"MPI", "x"}, {"--tp", "1"}}});
  EXPECT_EQ(disagreements(same), Lines{});
  EXPECT_EQ(differences(same), Lines{});
  EXPECT_EQ(refusal(same), "");
}

TEST(Agreement, NamesFieldValuesRanksAndHosts) {
  EXPECT_EQ(disagreements(stated({{{"--tp", "1"}}, {{"--tp", "2"}}})),
            (Lines{"--tp: rank 0 on h0 has \"1\"; rank 1 on h0 has \"2\""}));
  EXPECT_EQ(disagreements(stated({{{"a", "1"}}, {{"a", "1"}}, {{"a", "2"}}, {{"a", "1"}}})),
            (Lines{"a: rank 0 on h0 and 2 others have \"1\"; rank 2 on h1 alone has \"2\""}));
}

TEST(Agreement, SaysPlainlyThatRank0IsTheOddOne) {
  std::vector<Values> ranks(6, {{"a", "theirs"}});
  ranks[0] = {{"a", "mine"}};
  EXPECT_EQ(disagreements(stated(ranks)),
            (Lines{"a: rank 0 on h0 alone has \"mine\"; rank 1 on h0, rank 2 on h1, rank 3 "
                   "on h1 and 2 others have \"theirs\""}));
}

TEST(Agreement, AValueThatOneRankLacks) {
  EXPECT_EQ(disagreements(stated({{{"a", "1"}}, {{"a", "1"}}, {}})),
            (Lines{"a: rank 0 on h0 and 1 other have \"1\"; rank 2 on h1 alone has none"}));
  EXPECT_EQ(disagreements(stated({{}, {{"a", "1"}}})),
            (Lines{"a: rank 0 on h0 has none; rank 1 on h0 has \"1\""}));
}

TEST(Agreement, GroupsByValueTheLargestFirst) {
  EXPECT_EQ(disagreements(stated({{{"a", "0"}}, {{"a", "1"}}, {{"a", "2"}}, {{"a", "2"}}})),
            (Lines{"a: rank 0 on h0 alone has \"0\"; rank 2 on h1 and rank 3 on h1 have "
                   "\"2\"; rank 1 on h0 alone has \"1\""}));
  std::vector<Values> ranks;
  for (int rank = 0; rank < 7; ++rank) ranks.push_back({{"a", std::to_string(rank)}});
  expect_part(disagreements(stated(ranks)).at(0), "and 3 more values");
}

TEST(Agreement, EveryFieldThatDiffersIsThere) {
  const std::string message = refusal(stated(
      {{{"a", "1"}, {"b", "1"}, {"c", "1"}, {"d", "1"}}, {{"a", "1"}, {"b", "2"}, {"c", "2"}}}));
  expect_part(message, "cannot start: the ranks disagree. b: ");
  expect_part(message, ". c: ");
  expect_part(message, "d: rank 0 on h0 has \"1\"; rank 1 on h0 has none");
  EXPECT_EQ(message.find(" a: "), std::string::npos) << message;
}

// A rank that states much, and nonsense, makes neither a long line nor a broken one.
TEST(Agreement, IsBounded) {
  Values many;
  for (int i = 0; i < 1000; ++i)
    many.emplace_back("field" + std::to_string(i), std::string(5000, 'x'));
  many.emplace_back("\x1b[2J", "\xff\n");
  const std::string message = refusal(stated({{}, many}));
  EXPECT_LE(message.size(), kMaxErrorBytes);
  expect_part(message, "field0");
  expect_part(message, "more fields: see above");
  expect_part(message, "same build of trireme");
  expect_part(disagreements(stated({{}, many})).back(), "?[2J: ");
}

}  // namespace
}  // namespace trireme

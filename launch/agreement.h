// SPDX-License-Identifier: Apache-2.0
// Compares what ranks state of themselves, field by field. Pure.
#pragma once

#include <string>
#include <vector>

#include "proto/preflight.pb.h"

namespace trireme {

struct Statement {
  int rank = 0;
  std::string host;
  RankFacts facts;
};

// A line for each field of must_agree that is not the same in all statements: rank 0's value first,
// then the others', with ranks and hosts.
std::vector<std::string> disagreements(const std::vector<Statement>& statements);

// The same of may_differ.
std::vector<std::string> differences(const std::vector<Statement>& statements);

// Throws kFailedPrecondition that says `what` cannot be done, with as many disagreements as fit in
// a line; all of them are logged where that is not all.
void require_agreement(const std::string& what, const std::vector<Statement>& statements);

}  // namespace trireme

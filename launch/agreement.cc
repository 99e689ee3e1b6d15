// SPDX-License-Identifier: Apache-2.0
#include "launch/agreement.h"

#include <algorithm>
#include <map>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/base/printable.h"

namespace trireme {
namespace {

constexpr size_t kShownBytes = 240;   // of a value
constexpr size_t kShownRanks = 3;     // of those with one value
constexpr size_t kShownValues = 4;    // of a field
constexpr size_t kShownFields = 6;    // in the error
constexpr size_t kLoggedFields = 40;  // beside it

std::string rank_on_host(const Statement& statement) {
  return "rank " + std::to_string(statement.rank) + " on " + statement.host;
}

// "rank 3 on b, rank 4 on b and 5 others"
std::string who(const std::vector<const Statement*>& ranks, size_t shown) {
  std::string text;
  const size_t named = std::min(ranks.size(), shown);
  for (size_t i = 0; i < named; ++i) {
    const bool last = i + 1 == ranks.size();
    text += (i == 0 ? "" : last ? " and " : ", ") + rank_on_host(*ranks[i]);
  }
  const size_t left = ranks.size() - named;
  if (left > 0) text += " and " + std::to_string(left) + (left == 1 ? " other" : " others");
  return text;
}

std::string has(size_t ranks, const std::string* value) {
  const std::string verb = ranks == 1 ? " has " : " have ";
  if (value == nullptr) return verb + "none";
  return verb + "\"" + printable(value->substr(0, kShownBytes)) +
         (value->size() > kShownBytes ? "…" : "") + "\"";
}

struct Stated {
  const Statement* by = nullptr;
  std::map<std::string, const std::string*> values;  // by field
};

// Empty if all have the same value.
std::string compare(const std::vector<Stated>& statements, const std::string& field) {
  struct Group {
    const std::string* value = nullptr;
    std::vector<const Statement*> ranks;
  };
  std::vector<Group> groups;  // rank 0's is the first
  for (const Stated& stated : statements) {
    const auto entry = stated.values.find(field);
    const std::string* const value = entry == stated.values.end() ? nullptr : entry->second;
    const auto same = [&](const Group& group) {
      return group.value == nullptr || value == nullptr ? group.value == value
                                                        : *group.value == *value;
    };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), {value, {}});
    group->ranks.push_back(stated.by);
  }
  if (groups.size() < 2) return "";
  std::stable_sort(groups.begin() + 1, groups.end(),
                   [](const Group& a, const Group& b) { return a.ranks.size() > b.ranks.size(); });
  std::string line = printable(field.substr(0, kShownBytes)) + ": ";
  for (size_t i = 0; i < std::min(groups.size(), kShownValues); ++i) {
    const Group& group = groups[i];
    if (i > 0) line += "; ";
    line += who(group.ranks, i == 0 ? 1 : kShownRanks);
    if (group.ranks.size() == 1 && statements.size() > 2) line += " alone";
    line += has(group.ranks.size(), group.value);
  }
  if (groups.size() > kShownValues) {
    line += "; and " + std::to_string(groups.size() - kShownValues) + " more values";
  }
  return line;
}

std::vector<std::string> compare_all(
    const std::vector<Statement>& statements,
    const google::protobuf::RepeatedPtrField<Fact>& (RankFacts::*kind)() const) {
  std::vector<std::string> fields;  // in the order in which they are stated, rank 0's first
  std::set<std::string> known;
  std::vector<Stated> all;
  for (const Statement& statement : statements) {
    Stated& stated = all.emplace_back(Stated{&statement, {}});
    for (const Fact& fact : (statement.facts.*kind)()) {
      if (known.insert(fact.field()).second) fields.push_back(fact.field());
      stated.values.emplace(fact.field(), &fact.value());
    }
  }
  std::vector<std::string> lines;
  for (const std::string& field : fields) {
    std::string line = compare(all, field);
    if (!line.empty()) lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace

std::vector<std::string> disagreements(const std::vector<Statement>& statements) {
  return compare_all(statements, &RankFacts::must_agree);
}

std::vector<std::string> differences(const std::vector<Statement>& statements) {
  return compare_all(statements, &RankFacts::may_differ);
}

void require_agreement(const std::string& what, const std::vector<Statement>& statements) {
  const std::vector<std::string> lines = disagreements(statements);
  if (lines.empty()) return;
  std::string message = "cannot " + what + ": the ranks disagree. ";
  const std::string advice =
      "Every rank needs the same flags, the same build of trireme and MPI, and the same files of "
      "the model";
  size_t shown = 0;
  for (; shown < std::min(lines.size(), kShownFields); ++shown) {
    if (shown > 0 && message.size() + lines[shown].size() + advice.size() + 40 > kMaxErrorBytes) {
      break;
    }
    message += lines[shown] + ". ";
  }
  if (shown < lines.size()) {
    message += "And " + std::to_string(lines.size() - shown) + " more fields: see above. ";
    for (size_t i = 0; i < std::min(lines.size(), kLoggedFields); ++i) log_error(lines[i]);
  }
  throw Error(Code::kFailedPrecondition, message + advice);
}

}  // namespace trireme

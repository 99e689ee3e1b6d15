// SPDX-License-Identifier: Apache-2.0
#include "launch/weight_check.h"

#include <set>
#include <span>

#include "launch/agreement.h"
#include "topology/topology.h"
#include "worker/digest.h"

namespace trireme {
namespace {

// The same for the same digests, whoever read them: so that two jobs can be compared.
std::string digest_of_all(const std::map<std::string, std::string>& digests) {
  Digest all;
  for (const auto& [tensor, digest] : digests) {
    const std::string line = tensor + " " + digest + "\n";
    all.add(std::as_bytes(std::span(line)));
  }
  return all.hex();
}

}  // namespace

WeightCheck::WeightCheck(const std::vector<RankInfo>& ranks) {
  for (const RankInfo& rank : ranks) {
    host_of_[rank.rank()] = rank.host();
    nodes_[rank.host()].ranks.push_back(rank.rank());
  }
}

void WeightCheck::add(int rank, const TensorDigests& digests) {
  Node& node = nodes_.at(host_of_.at(rank));
  for (const TensorDigest& digest : digests.digests()) {
    node.digests["tensor " + digest.tensor() + " of " + digest.file()] = digest.sha256();
    node.bytes += digest.bytes();
  }
}

std::string WeightCheck::finish() const {
  std::set<std::string> tensors;
  for (const auto& [host, node] : nodes_) {
    for (const auto& [tensor, digest] : node.digests) tensors.insert(tensor);
  }
  std::set<std::string> differing;
  const Node& first = nodes_.begin()->second;
  for (const std::string& tensor : tensors) {
    const auto expected = first.digests.find(tensor);
    for (const auto& [host, node] : nodes_) {
      const auto found = node.digests.find(tensor);
      const bool both = expected != first.digests.end() && found != node.digests.end();
      if (!both || found->second != expected->second) differing.insert(tensor);
    }
  }
  std::vector<Statement> statements;
  for (const auto& [host, node] : nodes_) {
    for (const int rank : node.ranks) {
      Statement& statement = statements.emplace_back(Statement{rank, host, {}});
      for (const std::string& tensor : differing) {
        const auto found = node.digests.find(tensor);
        if (found == node.digests.end()) continue;
        Fact& fact = *statement.facts.add_must_agree();
        fact.set_field(tensor);
        fact.set_value("sha256 " + found->second);
      }
    }
  }
  require_agreement("serve these weights", statements);
  const std::string nodes = nodes_.size() == 1
                                ? "on this one host: there is no other to compare it with"
                                : "the same on " + std::to_string(nodes_.size()) + " hosts";
  return "checkpoint verified: " + std::to_string(tensors.size()) + " tensors, " +
         format_bytes(first.bytes) + ", sha256 " + digest_of_all(first.digests) + ", " + nodes;
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "launch/weight_check.h"

#include <gtest/gtest.h>

#include "tests/worker/model_files.h"

namespace trireme {
namespace {

std::vector<RankInfo> ranks_on(const std::vector<std::string>& hosts) {
  std::vector<RankInfo> ranks;
  for (const std::string& host : hosts) {
    RankInfo& rank = ranks.emplace_back();
    rank.set_rank(static_cast<int>(ranks.size()));
    rank.set_host(host);
  }
  return ranks;
}

TensorDigests digests(const std::vector<std::pair<std::string, std::string>>& values) {
  TensorDigests all;
  for (const auto& [tensor, value] : values) {
    TensorDigest& digest = *all.add_digests();
    digest.set_tensor(tensor);
    digest.set_file("model.safetensors");
    digest.set_sha256(value);
    digest.set_bytes(1 << 20);
  }
  return all;
}

TEST(WeightCheck, RanksOfAHostMakeOneCopy) {
  WeightCheck check(ranks_on({"a", "a", "b"}));
  check.add(1, digests({{"x", "11"}}));
  check.add(2, digests({{"y", "22"}}));
  check.add(3, digests({{"y", "22"}, {"x", "11"}}));
  const std::string said = check.finish();
  EXPECT_NE(said.find("2 tensors, 2.0 MiB, sha256 "), std::string::npos) << said;
  EXPECT_NE(said.find("the same on 2 hosts"), std::string::npos) << said;
}

// Two jobs of other shapes on the same files say the same.
TEST(WeightCheck, OneDigestOverAll) {
  WeightCheck one(ranks_on({"a", "a"})), two(ranks_on({"b"})), other(ranks_on({"b"}));
  one.add(1, digests({{"y", "22"}}));
  one.add(2, digests({{"x", "11"}}));
  two.add(1, digests({{"x", "11"}, {"y", "22"}}));
  other.add(1, digests({{"x", "11"}, {"y", "23"}}));
  EXPECT_EQ(one.finish(), two.finish());
  EXPECT_NE(one.finish(), other.finish());
}

TEST(WeightCheck, NamesTensorFileRanksHostsAndDigests) {
  WeightCheck check(ranks_on({"a", "b", "c", "c"}));
  check.add(1, digests({{"x", "11"}, {"y", "22"}}));
  check.add(2, digests({{"x", "11"}, {"y", "22"}}));
  check.add(3, digests({{"x", "11"}, {"y", "33"}}));
  expect_error(
      Code::kFailedPrecondition,
      "tensor y of model.safetensors: rank 1 on a and 1 other have \"sha256 22\"; rank 3 on c "
      "and rank 4 on c have \"sha256 33\"",
      [&] { check.finish(); });
}

TEST(WeightCheck, NamesATensorThatAHostDidNotRead) {
  WeightCheck check(ranks_on({"a", "b"}));
  check.add(1, digests({{"x", "11"}, {"y", "22"}}));
  check.add(2, digests({{"x", "11"}}));
  expect_error(Code::kFailedPrecondition, "tensor y of model.safetensors", [&] { check.finish(); });
}

}  // namespace
}  // namespace trireme

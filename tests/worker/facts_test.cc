// SPDX-License-Identifier: Apache-2.0
#include "worker/facts.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/worker/model_files.h"
#include "worker/digest.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::map<std::string, std::string> facts_of(const std::string& path) {
  RankFacts facts;
  state_model_files(path, facts);
  std::map<std::string, std::string> values;
  for (const Fact& fact : facts.must_agree()) {
    EXPECT_TRUE(values.emplace(fact.field(), fact.value()).second) << fact.field();
  }
  return values;
}

// The fields whose values differ when `change` is made to a copy of the checkpoint.
std::vector<std::string> changed(const std::string& name,
                                 const std::function<void(const std::string& folder)>& change) {
  const TemporaryFolder folder;
  const std::string copy = folder.path() + "/copy";
  fs::copy(test_data(name), copy);
  const auto before = facts_of(copy);
  EXPECT_EQ(before, facts_of(test_data(name))) << "a copy states the same";
  for (const auto& entry : fs::directory_iterator(copy)) {
    fs::permissions(entry, fs::perms::owner_write, fs::perm_options::add);
  }
  change(copy);
  std::map<std::string, int> fields;
  for (const auto& fact : before) ++fields[fact.first + "=" + fact.second];
  for (const auto& fact : facts_of(copy)) --fields[fact.first + "=" + fact.second];
  std::map<std::string, int> names;
  for (const auto& [field, count] : fields) {
    if (count != 0) ++names[field.substr(0, field.find('='))];
  }
  std::vector<std::string> result;
  for (const auto& [field, count] : names) result.push_back(field);
  return result;
}

using Names = std::vector<std::string>;

// Turns a bit of one byte.
void turn(const std::string& path, size_t at) {
  std::string bytes = read_whole(path);
  ASSERT_LT(at, bytes.size());
  bytes[at] ^= 1;
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(Digest, IsSha256) {
  EXPECT_EQ(sha256({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Digest digest;
  for (const char letter : {'a', 'b', 'c'}) {
    digest.add(std::as_bytes(std::span(&letter, 1)));
  }
  EXPECT_EQ(digest.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Facts, ABitOfEachFileThatIsRead) {
  for (const char* const name : {"config.json", "generation_config.json", "tokenizer.json"}) {
    EXPECT_EQ(changed("tiny-llama3", [&](const auto& f) { turn(f + "/" + name, 5); }), Names{name});
  }
  EXPECT_EQ(changed("tiny-chatglm3", [](const auto& f) { turn(f + "/tokenizer.model", 100); }),
            Names{"tokenizer.model"});
  EXPECT_EQ(changed("tiny-llama3", [](const auto& f) { turn(f + "/model.safetensors", 20); }),
            Names{"model.safetensors header"});
  EXPECT_EQ(
      changed("tiny-llama3",
              [](const auto& f) { std::ofstream(f + "/model.safetensors", std::ios::app) << "x"; }),
      Names{"model.safetensors size"});
  // Weights are not read here.
  EXPECT_EQ(changed("tiny-llama3",
                    [](const auto& f) {
                      turn(f + "/model.safetensors",
                           read_whole(f + "/model.safetensors").size() - 1);
                    }),
            Names{});
  EXPECT_EQ(changed("tiny-llama3", [](const auto& f) { std::ofstream(f + "/notes.txt") << "x"; }),
            Names{});
}

TEST(Facts, IndexAndShards) {
  const std::string sharded = "tiny-chatglm3-fp16-sharded";
  const auto facts = facts_of(test_data(sharded));
  EXPECT_TRUE(facts.contains("model.safetensors.index.json"));
  std::string shard;
  for (const auto& [field, value] : facts) {
    if (field.starts_with("model-00001") && field.ends_with(" header")) {
      shard = field.substr(0, field.find(' '));
    }
  }
  ASSERT_FALSE(shard.empty());
  EXPECT_EQ(changed(sharded, [&](const auto& f) { turn(f + "/" + shard, 12); }),
            Names{shard + " header"});
  EXPECT_EQ(changed(sharded, [&](const auto& f) { fs::remove(f + "/" + shard); }),
            (Names{shard + " header", shard + " size"}));
  EXPECT_EQ(changed(sharded,
                    [&](const auto& f) {
                      const std::string index = f + "/model.safetensors.index.json";
                      std::string text = read_whole(index);
                      text.insert(text.rfind('}'), " ");
                      std::ofstream(index) << text;
                    }),
            Names{"model.safetensors.index.json"});
}

TEST(Facts, Gguf) {
  const TemporaryFolder folder;
  const std::string bytes = read_whole(test_data("gguf/tiny-llama3.gguf"));
  const auto before = facts_of(folder.write("a.gguf", bytes));
  EXPECT_EQ(before.size(), 3u);
  EXPECT_EQ(before, facts_of(folder.write("other name.gguf", bytes)));
  const std::string path = folder.write("b.gguf", bytes + std::string(32, '\0'));
  const auto longer = facts_of(path);
  EXPECT_NE(before.at("GGUF size"), longer.at("GGUF size"));
  EXPECT_EQ(before.at("GGUF header"), longer.at("GGUF header"));
  // In the name of the first key.
  turn(folder.path() + "/a.gguf", 40);
  EXPECT_NE(facts_of(folder.path() + "/a.gguf").at("GGUF header"), before.at("GGUF header"));
}

// What cannot be read is a fact too.
TEST(Facts, FilesThatAreAbsentOrBroken) {
  const TemporaryFolder folder;
  EXPECT_EQ(facts_of(folder.path() + "/nothing").at("the model's path"), "absent");
  EXPECT_EQ(facts_of(folder.path()).at("the model's path"), "a directory");
  folder.write("model.safetensors", "abc");
  EXPECT_EQ(facts_of(folder.path()).at("model.safetensors size"), "3 bytes");
  folder.write("model.safetensors", std::string(7, '\xff') + std::string(20, 'x'));
  EXPECT_NE(facts_of(folder.path()).at("model.safetensors header").find("of 27 bytes"),
            std::string::npos);
  EXPECT_NE(facts_of(folder.write("a.gguf", "GGUX")).at("GGUF header").find("cannot read"),
            std::string::npos);
  fs::create_directory(folder.path() + "/config.json");
  EXPECT_NE(facts_of(folder.path()).at("config.json").find("a directory"), std::string::npos);
}

TEST(Facts, ABuildHasAnId) {
  const std::string id = build_id();
  EXPECT_EQ(id.size(), 40u) << id;
  EXPECT_EQ(id, build_id());
}

TEST(Facts, ValuesAreShortAndPrintable) {
  RankFacts facts;
  add_fact(*facts.mutable_must_agree(), "f", std::string(1000, 'x') + "\xff");
  add_fact(*facts.mutable_must_agree(), "f", std::string(1000, 'x') + "\xfe");
  EXPECT_LT(facts.must_agree(0).value().size(), 300u);
  EXPECT_NE(facts.must_agree(0).value(), facts.must_agree(1).value());
  add_fact(*facts.mutable_must_agree(), "f", "\xff\x1b");
  EXPECT_EQ(facts.must_agree(2).value(), "??");
}

}  // namespace
}  // namespace trireme

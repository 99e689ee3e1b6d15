// SPDX-License-Identifier: Apache-2.0
// `trireme plan` for machines that files describe: no weight is there to be read.
#include "launch/plan.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "tests/support/models.h"
#include "topology/topology.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

class Plan : public testing::Test {
 protected:
  Plan() : folder_(testing::TempDir() + "plan" + std::to_string(getpid())) {
    fs::create_directories(folder_ + "/model");
    fs::copy_file(TRIREME_SOURCE_DIR "/tests/data/tiny-chatglm3/config.json",
                  folder_ + "/model/config.json", fs::copy_options::overwrite_existing);
    write("cluster.json", topology_to_json(make_topology(3, uint64_t{4} << 30)));
  }
  ~Plan() override { fs::remove_all(folder_); }

  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(file(name)) << text;
  }
  std::string read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(file(name)).rdbuf();
    return text.str();
  }

  // What it prints, or what it throws.
  std::string run(std::vector<std::string> words) const {
    words.insert(words.begin(), {"trireme", "plan"});
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    testing::internal::CaptureStdout();
    std::string thrown;
    try {
      plan(parse_options(static_cast<int>(argv.size()), argv.data()));
    } catch (const Error& error) {
      thrown = error.what();
    }
    return testing::internal::GetCapturedStdout() + thrown;
  }

  const std::string folder_;
};

TEST(PlanOptions, AreRead) {
  std::string words[] = {"trireme",    "plan",      "--model",    "M",     "--topology",  "a.json",
                         "b.json",     "--explain", "--svg",      "p.svg", "--objective", "latency",
                         "--tpot_max", "50ms",      "--ttft_max", "2s"};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  const Options options = parse_options(static_cast<int>(argv.size()), argv.data());
  EXPECT_EQ(options.plan.topology, (std::vector<std::string>{"a.json", "b.json"}));
  EXPECT_TRUE(options.plan.explain);
  EXPECT_FALSE(options.plan.json);
  EXPECT_EQ(options.plan.svg, "p.svg");
  EXPECT_EQ(options.placement.objective, "latency");
  EXPECT_EQ(options.placement.tpot_max->count(), 50);
  EXPECT_EQ(options.placement.ttft_max->count(), 2000);
}

TEST_F(Plan, NeedsAConfigAndATopologyOnly) {
  const std::vector<std::string> base = {"--model", file("model"), "--topology",
                                         file("cluster.json")};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  EXPECT_NE(with({}).find("embedding 0-"), std::string::npos) << with({});
  EXPECT_NE(with({"--explain"}).find("memory is tightest on rank"), std::string::npos);
  with({"--svg", file("plan.svg")});
  EXPECT_TRUE(read("plan.svg").starts_with("<svg"));
  // What --json prints is a map that the same machines take.
  write("placement.json", with({"--json", "--pp", "2"}));
  const std::string again = with({"--device_map", file("placement.json"), "--json"});
  const std::string written = read("placement.json");
  const auto layers = [](const std::string& json) {
    std::string found;
    for (size_t at = 0; (at = json.find("\"layers\":{", at)) != json.npos; ++at) {
      found += json.substr(at, json.find('}', at) - at);
    }
    return found;
  };
  EXPECT_NE(layers(written), "");
  EXPECT_EQ(layers(again), layers(written));
  EXPECT_NE(again.find("\"method\":\"given\""), again.npos) << again;
  const std::string balanced = with({"--device_map", "balanced", "--context", "512"});
  EXPECT_NE(balanced.find("embedding"), again.npos) << balanced;
}

// Every map that users know, with limits and types, from the config alone.
TEST_F(Plan, TakesEveryDeviceMap) {
  write("hf.json",
        "{\"transformer.embedding\": \"node:2\", \"transformer.encoder.layers.0\": 2,"
        " \"transformer\": 0}");
  const auto with = [&](const std::string& map, std::vector<std::string> more) {
    const std::vector<std::string> base = {"--model", file("model"), "--topology",
                                           file("cluster.json"), "--json"};
    more.insert(more.begin(), base.begin(), base.end());
    if (!map.empty()) more.insert(more.end(), {"--device_map", map});
    return run(more);
  };
  const auto count = [](const std::string& text, const std::string& what) {
    int found = 0;
    for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++found;
    return found;
  };
  const std::vector<std::string> maps = {"auto", "balanced", "balanced_low_0", "sequential",
                                         file("hf.json")};
  for (const std::string& map : maps) {
    for (const char* dtype : {"fp32", "bf16", "fp16"}) {
      const std::string plan = with(map, {"--dtype", dtype, "--max_memory",
                                          "cpu=2GiB,node:1=1GiB,0=1GiB", "--context", "256"});
      EXPECT_EQ(count(plan, "\"dtype\":\"" + std::string(dtype) + "\""), 1) << map << plan;
      EXPECT_EQ(count(plan, "\"context\":256"), 1) << map << plan;
    }
    write("again.json", with(map, {}));
    EXPECT_EQ(count(with(file("again.json"), {}), "\"shards\""),
              count(read("again.json"), "\"shards\""));
    for (const char* flag : {"--dtype", "--max_memory"}) {
      const char* value = flag == std::string("--dtype") ? "bf16" : "0=1GiB";
      const std::string refused = with(file("again.json"), {flag, value});
      EXPECT_EQ(refused.find("cannot use " + std::string(flag)), 0u) << refused;
    }
  }
  // What is on the second rank is on it.
  const std::string hf = with(file("hf.json"), {});
  EXPECT_LT(hf.find("\"rank\":3"), hf.find("\"rank\":1")) << hf;
  EXPECT_NE(with("sequential", {"--max_memory", "gpu=1GiB"}).find("no worker is called gpu"),
            std::string::npos);
  const std::string none = with("sequential", {"--max_memory", "cpu=256MiB"});
  EXPECT_NE(none.find("it has 256.0 MiB"), std::string::npos) << none;
}

TEST_F(Plan, TakesGgufFilesAndSeveralTopologies) {
  Topology more = make_topology(3, uint64_t{4} << 30);
  for (RankInfo& rank : *more.mutable_ranks()) rank.set_host("other");
  write("more.json", topology_to_json(more));
  const std::string text = run({"--model", TRIREME_SOURCE_DIR "/tests/data/gguf/tiny-llama3.gguf",
                                "--topology", file("cluster.json"), file("more.json"), "--tp", "1",
                                "--pp", "2", "--dp", "1", "--json"});
  const size_t spares = text.find("\"spare_ranks\":[");
  ASSERT_NE(spares, std::string::npos) << text;
  const std::string list = text.substr(spares, text.find(']', spares) - spares);
  EXPECT_EQ(std::count(list.begin(), list.end(), ','), 3) << list;
}

TEST_F(Plan, BadInputIsRefused) {
  EXPECT_NE(run({"--model", file("model"), "--topology", file("absent.json")}).find("no such file"),
            std::string::npos);
  write("broken.json", "{\"ranks\": [{\"rank\": 1}, {\"rank\": 1}]}");
  write("empty.json", "{}");
  for (const char* wrong : {"broken.json", "empty.json"}) {
    const std::string said = run({"--model", file("model"), "--topology", file(wrong)});
    EXPECT_NE(said.find("cannot "), std::string::npos) << said;
    EXPECT_EQ(said.find("embedding"), std::string::npos) << said;
  }
  write("map.json", "{\"lm_head\": 0}");
  const std::string map = run({"--model", file("model"), "--topology", file("cluster.json"),
                               "--device_map", file("map.json")});
  EXPECT_NE(map.find("\"lm_head\" is no module of model"), std::string::npos) << map;
  const std::string twice = run({"--model", file("model"), "--topology", file("cluster.json"),
                                 "--device_map", file("map.json"), "--pp", "2"});
  EXPECT_NE(twice.find("--pp"), std::string::npos) << twice;
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// accelerate's own answers, from tests/data/make_device_map_cases.py.
#include "topology/device_map_accelerate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "worker/model/family.h"

namespace trireme {
namespace {

using nlohmann::json;

ModelSpec spec_of(const json& config) {
  const std::string folder = testing::TempDir() + "device_map_case_" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << config.dump();
  ModelSpec spec = read_model_spec(folder);
  std::filesystem::remove_all(folder);
  return spec;
}

// As the script writes it: runs of devices.
std::string runs(const std::vector<int>& map, size_t gpus) {
  std::string text;
  for (size_t begin = 0; begin < map.size();) {
    size_t end = begin;
    while (end < map.size() && map[end] == map[begin]) ++end;
    const int device = map[begin];
    text += (text.empty() ? "" : " ") +
            (device == kAccelerateDisk             ? "disk"
             : static_cast<size_t>(device) == gpus ? "cpu"
                                                   : std::to_string(device)) +
            "*" + std::to_string(end - begin);
    begin = end;
  }
  return text;
}

TEST(AccelerateMap, IsTheOriginals) {
  std::ifstream file(TRIREME_SOURCE_DIR "/tests/data/device_map_cases.json");
  const json cases = json::parse(file);
  int compared = 0;
  for (const json& model : cases["models"]) {
    const ModelSpec spec = spec_of(model["config"]);
    for (const json& one : model["cases"]) {
      const auto strategy = parse_accelerate_strategy(one[0].get<std::string>());
      const auto dtype = parse_dtype(one[1].get<std::string>());
      ASSERT_TRUE(strategy && dtype);
      std::vector<AccelerateDevice> devices;
      for (const json& bytes : one[2]) devices.push_back({bytes.get<double>(), false});
      const size_t gpus = devices.size();
      if (!one[3].is_null()) devices.push_back({one[3].get<double>(), true});
      devices = accelerate_budgets(spec, *dtype, *strategy, devices, true);
      EXPECT_EQ(runs(accelerate_map(spec, *dtype, devices), gpus), one[4].get<std::string>())
          << model["name"] << ' ' << one.dump();
      ++compared;
    }
  }
  EXPECT_EQ(compared, 396);
  std::printf(
      "{\"bar\": \"device maps equal to accelerate's\", \"value\": %d, \"target\": 396, "
      "\"ok\": %s}\n",
      compared, HasFailure() ? "false" : "true");
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// The cost model against what others measured (../shared/data/measured); skipped where that is not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/models.h"
#include "topology/cost.h"
#include "topology/cost_fit.h"

namespace trireme {
namespace {

const std::string kMeasured = TRIREME_SOURCE_DIR "/../shared/data/measured/";

using Row = std::map<std::string, std::string>;

std::vector<Row> read_csv(const std::string& path) {
  std::ifstream file(path);
  std::vector<Row> rows;
  std::vector<std::string> names;
  for (std::string line; std::getline(file, line);) {
    std::istringstream cells(line);
    std::vector<std::string> values;
    for (std::string cell; std::getline(cells, cell, ',');) values.push_back(cell);
    if (names.empty()) {
      names = values;
      continue;
    }
    Row row;
    for (size_t i = 0; i < std::min(names.size(), values.size()); ++i) row[names[i]] = values[i];
    rows.push_back(std::move(row));
  }
  return rows;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(q * double(values.size())))];
}

void bar(const std::string& name, double value, double target) {
  std::printf("{\"bar\": \"%s\", \"value\": %.4f, \"target\": \"<= %.2f\", \"ok\": %s}\n",
              name.c_str(), value, target, value <= target ? "true" : "false");
  EXPECT_LE(value, target) << name;
}

DeviceCost gpu(const std::string& type) {
  DeviceInfo device;
  device.set_kind(DEVICE_KIND_CUDA);
  device.set_type(type);
  return device_cost(device);
}

class MeasuredMatrices : public testing::TestWithParam<std::pair<const char*, const char*>> {};

// LLaMA-2-70B's four matrices of a layer, TP 1 to 8, 1 to 4096 tokens, kernels launched one by one.
TEST_P(MeasuredMatrices, FittedOnEvenRowsPredictOddOnes) {
  const auto& [type, name] = GetParam();
  const std::string path = kMeasured + "gemm/" + name + ".l270b.mlp.csv";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const double parameters = 8192.0 * (2 * 8192 + 2 * 1024 + 3 * 28672);
  std::vector<MatrixTime> even, odd;
  for (const Row& row : read_csv(path)) {
    MatrixTime point;
    for (const char* part : {"attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj"}) {
      point.seconds += 1e-3 * std::stod(row.at("time_stats." + std::string(part) + ".median"));
    }
    point.parameters = parameters / std::stod(row.at("num_tensor_parallel_workers"));
    point.bytes = 2 * point.parameters;
    point.tokens = std::stod(row.at("num_tokens"));
    (even.size() == odd.size() ? even : odd).push_back(point);
  }
  ASSERT_GT(odd.size(), 400u);
  DeviceCost start = gpu(type);
  start.launch_s = 30e-6;
  const DeviceCost fitted = fit_matrices(start, even);
  std::vector<double> errors;
  for (const MatrixTime& point : odd) {
    errors.push_back(std::abs(predict_matrices_s(fitted, point) / point.seconds - 1));
  }
  bar(std::string("GEMM ") + type + " median error on odd rows", quantile(errors, 0.5), 0.05);
  bar(std::string("GEMM ") + type + " p90 error on odd rows", quantile(errors, 0.9), 0.15);
  // The table has what the fit finds.
  EXPECT_NEAR(fitted.em, gpu(type).em, 0.05);
  EXPECT_NEAR(fitted.ec, gpu(type).ec, 0.05);
}

INSTANTIATE_TEST_SUITE_P(Devices, MeasuredMatrices,
                         testing::Values(std::pair{"A100", "a100"}, std::pair{"A40", "a40"}));

// Every second size is a sample of the table, the others are predicted.
TEST(MeasuredAllReduce, SizesHeldOut) {
  if (!std::filesystem::exists(kMeasured + "allreduce")) GTEST_SKIP() << "no " << kMeasured;
  std::vector<double> errors;
  for (const auto& entry : std::filesystem::directory_iterator(kMeasured + "allreduce")) {
    if (entry.path().string().find("_nccl_perf.csv") == std::string::npos) continue;
    std::map<std::pair<std::string, int>, std::map<uint64_t, double>> tables;
    for (const Row& row : read_csv(entry.path())) {
      if (row.at("op_name") != "all_reduce") continue;
      const std::string& type = row.at("nccl_dtype");
      tables[{type, std::stoi(row.at("num_gpus"))}]
            [std::stoull(row.at("message_size")) * (type == "half" ? 2 : 1)] =
                1e-3 * std::stod(row.at("latency"));
    }
    for (const auto& [key, points] : tables) {
      AllReduceTable table;
      AllReduceRow& row = *table.add_rows();
      row.set_tp(key.second);
      row.set_alpha_s(1e-5);
      row.set_bus_bytes_per_s(1e11);
      size_t index = 0;
      for (const auto& [bytes, seconds] : points) {
        if (index++ % 2 == 1) continue;
        AllReduceSample& sample = *row.add_samples();
        sample.set_bytes(bytes);
        sample.set_seconds(seconds);
      }
      index = 0;
      for (const auto& [bytes, seconds] : points) {
        if (index++ % 2 == 0 || index == points.size()) continue;
        errors.push_back(std::abs(all_reduce_s(table, key.second, double(bytes)) / seconds - 1));
      }
    }
  }
  ASSERT_GT(errors.size(), 200u);
  bar("all-reduce median error on sizes held out", quantile(errors, 0.5), 0.10);
}

struct Request {
  double first, last, prompt, output;
};

std::vector<Request> read_requests(const std::string& path) {
  std::ifstream file(path);
  std::vector<Request> requests;
  for (std::string line; std::getline(file, line);) {
    const auto entry = nlohmann::json::parse(line);
    requests.push_back({entry["first_token_ts"], entry["last_token_ts"], entry["input_toks"],
                        entry["output_toks"]});
  }
  return requests;
}

// vLLM serving Llama-3.1-8B on one RTX 4090. Between a request's first and last token there are as
// many steps as it has tokens; how many others decoded meanwhile, with how much context, and which
// prompts passed is in the log. The step times are the model's, with the table's constants.
TEST(MeasuredServing, StepTimesOfALoggedRun) {
  const std::string path = kMeasured + "vllm-runs/RTX4090_Llama-3.1-8B.requests.jsonl";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const std::vector<Request> requests = read_requests(path);
  ASSERT_EQ(requests.size(), 300u);
  const CostAssumptions assumptions;
  const ModelCost model =
      model_cost(make_model(32, 32, 8, 128, 14336, 128256), DType::kBF16, assumptions);
  StageCost stage;
  stage.device = gpu("R4090");
  // One step: the matrices once for all its tokens, attention and the rest for each kind.
  const auto step = [&](double decodes, double positions, double chunk, double before) {
    double layer = decode_layer_s(model, stage, assumptions, decodes, positions);
    if (chunk > 0) {
      layer += matrices_s(model, stage, decodes + chunk) - matrices_s(model, stage, decodes);
      layer += prefill_layer_s(model, stage, assumptions, chunk, before) -
               matrices_s(model, stage, chunk) - stage.device.prefill_layer_s;
    }
    return model.layers * layer + head_s(model, stage, decodes + (chunk > 0 ? 1 : 0));
  };
  std::vector<double> errors;
  for (const Request& request : requests) {
    const double window = request.last - request.first;
    double decodes = 0, positions = 0;
    std::vector<double> prompts;
    for (const Request& other : requests) {
      const double begin = std::max(request.first, other.first);
      const double end = std::min(request.last, other.last);
      if (end > begin) {
        const double share = (end - begin) / window;
        const double middle = ((begin + end) / 2 - other.first) / (other.last - other.first);
        decodes += share;
        positions += share * (other.prompt + middle * other.output);
      }
      if (&other != &request && other.first > request.first && other.first <= request.last) {
        prompts.push_back(other.prompt);
      }
    }
    positions /= decodes;
    const double plain = step(decodes, positions, 0, 0);
    double seconds = (request.output - 1) * plain;
    for (const double prompt : prompts) {
      for (double done = 0; done < prompt;) {
        const double chunk = std::min(prompt - done, 2048 - decodes);
        seconds += step(decodes, positions, chunk, done) - plain;
        done += chunk;
      }
    }
    errors.push_back(std::abs(seconds / window - 1));
  }
  bar("vLLM run, per-step time, median error", quantile(errors, 0.5), 0.10);
}

}  // namespace
}  // namespace trireme

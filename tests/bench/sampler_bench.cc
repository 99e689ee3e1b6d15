// SPDX-License-Identifier: Apache-2.0
// Time of one draw from a vocabulary of 151,936, as JSON lines: the CPU time of the thread, the
// least of several rounds and their spread.
//
//   sampler_bench [--rounds N]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "worker/sampler.h"

namespace {

using namespace trireme;

constexpr size_t kVocab = 151936;
constexpr int kDraws = 20;  // of a round
constexpr double kTarget = 1000;

double thread_us() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
}

struct Setting {
  const char* name;
  std::function<void(DrawSpec&)> set;
  bool has_target;
};

const std::vector<Setting> kSettings{
    {"greedy", [](DrawSpec& spec) { spec.set_temperature(0); }, false},
    {"temperature", [](DrawSpec&) {}, false},
    {"temperature, top_p 0.9", [](DrawSpec& spec) { spec.set_top_p(0.9); }, true},
    {"temperature, top_k 20", [](DrawSpec& spec) { spec.set_top_k(20); }, false},
    {"temperature, top_k 20, top_p 0.9, min_p 0.05",
     [](DrawSpec& spec) {
       spec.set_top_k(20);
       spec.set_top_p(0.9);
       spec.set_min_p(0.05);
     },
     false},
    {"top_p 0.9 of a flat distribution",
     [](DrawSpec& spec) {
       spec.set_temperature(100);
       spec.set_top_p(0.9);
     },
     false},
    {"temperature, top_p 0.9, three penalties, 300 biases",
     [](DrawSpec& spec) {
       spec.set_top_p(0.9);
       spec.set_repetition_penalty(1.1);
       spec.set_frequency_penalty(0.5);
       spec.set_presence_penalty(0.5);
       for (int id = 0; id < 300; ++id) {
         spec.add_bias_ids(id * 500);
         spec.add_biases(1);
       }
     },
     true},
    {"temperature, 20 logprobs", [](DrawSpec& spec) { spec.set_logprobs(20); }, false},
};

void measure(const Setting& setting, const std::vector<float>& logits,
             const std::vector<int32_t>& history, int rounds) {
  DrawSpec spec;
  spec.set_temperature(0.8);
  spec.set_top_p(1);
  spec.set_seed(1);
  spec.set_num_prompt(static_cast<int32_t>(history.size() / 2));
  setting.set(spec);
  Sampler sampler(static_cast<int32_t>(logits.size()));
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    const double begin = thread_us();
    for (int draw = 0; draw < kDraws; ++draw) {
      SampledToken token;
      sampler.draw(logits, spec, round * kDraws + draw, history, token);
    }
    times.push_back((thread_us() - begin) / kDraws);
  }
  std::sort(times.begin(), times.end());
  std::string bar = std::string("{\"draw\": \"") + setting.name + "\"";
  if (setting.has_target) bar = std::string("{\"bar\": \"draw: ") + setting.name + "\"";
  std::printf("%s, \"value\": %.0f, \"median\": %.0f, \"unit\": \"us\"", bar.c_str(), times.front(),
              times[times.size() / 2]);
  if (setting.has_target) {
    std::printf(", \"target\": %.0f, \"ok\": %s", kTarget,
                times.front() <= kTarget ? "true" : "false");
  }
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 15;
  if (argc == 3 && std::strcmp(argv[1], "--rounds") == 0) {
    rounds = std::max(1, std::atoi(argv[2]));
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: sampler_bench [--rounds N]\n");
    return 2;
  }
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(random);
  for (int index = 0; index < 30; ++index) logits[random() % kVocab] += 8;  // as a model's
  std::vector<int32_t> history(4096);
  for (int32_t& id : history) id = static_cast<int32_t>(random() % kVocab);
  for (const Setting& setting : kSettings) measure(setting, logits, history, rounds);
  return 0;
}

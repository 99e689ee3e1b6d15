// SPDX-License-Identifier: Apache-2.0
// logits MODEL DTYPE ID… > values: the prompt's logits, fp32, position by position. For
// gguf_logits_test.py.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "tests/support/rank_job.h"
#include "worker/model/family.h"

namespace {

int run(int argc, char** argv) {
  using namespace trireme;
  RankJobOptions options;
  options.model_path = argv[1];
  options.dtype = argv[2];
  std::vector<int32_t> ids;
  for (int i = 3; i < argc; ++i) ids.push_back(std::stoi(argv[i]));
  const auto script =
      make_script(read_model_spec(options.model_path), ids, static_cast<int32_t>(ids.size()), 0, 0);
  for (const auto& [key, row] : run_local(options, script)) {
    if (std::fwrite(row.data(), sizeof(float), row.size(), stdout) != row.size()) return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

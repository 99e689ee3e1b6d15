// SPDX-License-Identifier: Apache-2.0
// Golden cases over MPI: mpirun -n 1 + tp*pp golden_mpi --tp=N --pp=N. Rank 0 has no part of the
// model, as in a job that serves; the rank that draws compares its logits with the reference, and
// bit for bit with the same split on threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "tests/support/rank_job.h"
#include "tests/support/reference.h"
#include "tests/support/sanitized.h"
#include "worker/comm/mpi.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

constexpr double kFp32Error = 2e-4;     // absolute, of a logit
constexpr double kBf16RowError = 4e-2;  // relative norm of a row
constexpr uint64_t kSequence = 1;       // the one that is looked at
constexpr int kEndTag = 1000;           // above those of a replica's groups

MpiJob* job = nullptr;  // of main()
int tp = 1, pp = 1;

struct Case {
  std::string checkpoint;
  std::string dtype;
};

double error_of(const std::vector<float>& row, const float* reference, bool fp32) {
  double largest = 0, square = 0, reference_square = 0;
  for (size_t index = 0; index < row.size(); ++index) {
    const double delta = std::fabs(double{row[index]} - reference[index]);
    largest = std::max(largest, delta);
    square += delta * delta;
    reference_square += double{reference[index]} * reference[index];
  }
  return fp32 ? largest : std::sqrt(square / reference_square);
}

void compare_with_reference(const ReferencePrompt& prompt, const Logits& logits, bool fp32) {
  const double allowed = fp32 ? kFp32Error : kBf16RowError;
  const auto length = static_cast<int32_t>(prompt.prompt.size());
  const std::vector<float>& last = logits.at({kSequence, length - 1});
  if (!prompt.all_logits.empty()) {
    for (int32_t position = 0; position < length; ++position) {
      const float* reference =
          prompt.all_logits.data() + static_cast<size_t>(position) * last.size();
      EXPECT_LE(error_of(logits.at({kSequence, position}), reference, fp32), allowed) << position;
    }
  } else {
    ASSERT_EQ(prompt.last_logits.size(), last.size());
    EXPECT_LE(error_of(last, prompt.last_logits.data(), fp32), allowed);
  }
  for (size_t step = 0; fp32 && step < prompt.greedy.size(); ++step) {
    if (prompt.margins[step] < 2 * kFp32Error) break;
    const std::vector<float>& row = logits.at({kSequence, length - 1 + static_cast<int32_t>(step)});
    EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), prompt.greedy[step]) << step;
  }
}

void expect_identical(const Logits& mpi, const Logits& threads) {
  ASSERT_EQ(mpi.size(), threads.size());
  for (const auto& [key, row] : mpi) {
    const std::vector<float>& other = threads.at(key);
    ASSERT_EQ(std::memcmp(row.data(), other.data(), row.size() * sizeof(float)), 0)
        << "sequence " << key.first << ", position " << key.second << " differs in its bits";
  }
}

class GoldenMpi : public testing::TestWithParam<Case> {};

TEST_P(GoldenMpi, ReferenceAndThreadsAgree) {
  const auto path = find_checkpoint(GetParam().checkpoint);
  if (!path) GTEST_SKIP() << GetParam().checkpoint << " is absent";
  const bool fp32 = GetParam().dtype != "bf16";
  const ModelSpec model = read_model_spec(*path);
  if (model.num_layers() < pp) GTEST_SKIP() << "it has " << model.num_layers() << " layers";
  RankJobOptions options;
  options.model_path = *path;
  options.dtype = GetParam().dtype;
  options.tp = tp;
  options.pp = pp;
  const std::vector<Assign> assigns = make_assignments(options);
  int chunk = 5, company = 7;  // of the first prompt; the next runs whole and alone, and so on
  for (const ReferencePrompt& prompt : read_reference(GetParam().checkpoint)) {
    std::vector<int32_t> tokens = prompt.prompt;
    tokens.insert(tokens.end(), prompt.greedy.begin(), prompt.greedy.end() - 1);
    const auto script =
        make_script(model, tokens, static_cast<int32_t>(prompt.prompt.size()), chunk, company);
    if (job->rank() > 0) {
      Cancellation cancellation;
      const auto transport = job->make_transport(cancellation);
      const Logits logits = run_rank(*path, assigns.at(job->rank() - 1), script, *transport);
      // The reporter: the first rank of the last stage.
      const bool reports = job->rank() - 1 == tp * (pp - 1);
      ASSERT_EQ(!logits.empty(), reports);
      if (reports) {
        compare_with_reference(prompt, logits, fp32);
        expect_identical(logits, run_local(options, script));
      }
    }
    chunk = 5 - chunk;
    company = 7 - company;
  }
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const std::string& checkpoint : golden_checkpoints()) {
    if (!kSanitized) cases.push_back({checkpoint, "fp32"});
    cases.push_back({checkpoint, "bf16"});
  }
  return cases;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.checkpoint + "_" + info.param.dtype;
  for (char& letter : name) {
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenMpi, testing::ValuesIn(all_cases()), case_name);

// Nobody leaves before the last one is done, so that a failure anywhere ends the job with status 1.
void wait_for_all() {
  Cancellation cancellation;
  const auto transport = job->make_transport(cancellation);
  std::vector<int> ranks;
  for (int rank = 0; rank < job->size(); ++rank) ranks.push_back(rank);
  float value = 0;
  transport->make_group(ranks, kEndTag)->all_reduce_sum(Tensor(&value, DType::kF32, 1, 1));
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  using namespace trireme;
  testing::InitGoogleTest(&argc, argv);
  for (int index = 1; index < argc; ++index) {
    std::sscanf(argv[index], "--tp=%d", &tp);
    std::sscanf(argv[index], "--pp=%d", &pp);
  }
  MpiJob mpi;
  job = &mpi;
  if (mpi.size() != 1 + tp * pp) {
    std::fprintf(stderr, "found %d ranks, needed %d for --tp=%d --pp=%d\n", mpi.size(), 1 + tp * pp,
                 tp, pp);
    mpi.abort(1);
  }
  if (RUN_ALL_TESTS() != 0) mpi.abort(1);
  wait_for_all();
  return 0;
}

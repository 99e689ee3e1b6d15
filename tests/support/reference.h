// SPDX-License-Identifier: Apache-2.0
// Reference outputs beside a checkpoint: ref.json and ref.safetensors, as ../shared/data/README.md
// describes them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trireme {

struct ReferencePrompt {
  std::vector<int32_t> prompt;
  std::vector<int32_t> greedy;     // without stop
  std::vector<double> margins;     // top1 - top2 at each greedy step
  std::vector<float> all_logits;   // [prompt, vocab]; empty if the reference has none
  std::vector<float> last_logits;  // [vocab]; empty likewise
  std::vector<int32_t> top_ids;    // of the last position
  std::vector<float> top_logits;
};

// The folder of a checkpoint: ../shared/data/models/<name>, else tests/data/<name>, else nothing.
std::optional<std::string> find_checkpoint(const std::string& name);

// Every tiny-* of these folders that has a reference, and those that ../shared alone holds: named
// even where it is absent, so that their tests are seen to be skipped.
std::vector<std::string> golden_checkpoints();

// The reference of a checkpoint: its own, or that of the one whose name it continues (tiny-chatglm3
// of tiny-chatglm3-fp32).
std::vector<ReferencePrompt> read_reference(const std::string& checkpoint_name);

}  // namespace trireme

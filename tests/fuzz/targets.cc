// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "coordinator/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace trireme::fuzz {

// The targets, in the order in which they run. To add one: its function, and its row here.
std::span<const Target> targets() {
  static constexpr Target kTargets[] = {
      {"safetensors", fuzz_safetensors},
      {"shard_index", fuzz_shard_index},
      {"gguf", fuzz_gguf},
      {"config", fuzz_config},
      {"device_map", fuzz_device_map},
      {"tokenizer_json", fuzz_tokenizer_json},
      {"sentencepiece", fuzz_sentencepiece},
      {"sentencepiece_folder", fuzz_sentencepiece_folder},
      {"tiktoken", fuzz_tiktoken},
      {"vocab_merges", fuzz_vocab_merges},
      {"regex", fuzz_regex},
      {"generate_request", fuzz_generate_request},
      {"chat_request", fuzz_chat_request},
      {"chat_template", fuzz_chat_template},
      {"tools_json", fuzz_tools_json},
      {"answer", fuzz_answer},
      {"control_frames", fuzz_control_frames},
      {"control_address", fuzz_control_address},
      {"micro_batch", fuzz_micro_batch},
      {"assign", fuzz_assign},
      {"nccl_xml", fuzz_machine_file},
      {"hwloc_xml", fuzz_machine_file},
      {"machine_text", fuzz_machine_file},
      {"topology_json", fuzz_topology_json},
  };
  return kTargets;
}

bool accepts(const std::function<void()>& parse) {
  constexpr size_t kMaxMessageBytes = 4096;
  try {
    parse();
    return true;
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(std::string_view(code_name(error.code())) != "UNKNOWN", "an Error has a known code");
    CHECK(!message.empty() && message.size() <= kMaxMessageBytes,
          "a message of " + std::to_string(message.size()) + " bytes");
    CHECK(!find_broken_utf8(message).has_value(), "a message is UTF-8");
    CHECK(message.find('\0') == message.npos, "a message has no zero byte");
    return false;
  }
}

InputFile::InputFile()
    : descriptor_(memfd_create("input", MFD_CLOEXEC)),
      path_("/proc/self/fd/" + std::to_string(descriptor_)) {
  CHECK(descriptor_ >= 0, "memfd_create");
}

InputFile::~InputFile() { close(descriptor_); }

void InputFile::set(std::string_view bytes) {
  CHECK(ftruncate(descriptor_, 0) == 0, "ftruncate");
  CHECK(pwrite(descriptor_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
        "pwrite");
}

InputFolder::InputFolder(const std::vector<std::string>& names) : files_(names.size()) {
  std::string pattern = (std::filesystem::temp_directory_path() / "fuzz-XXXXXX").string();
  CHECK(mkdtemp(pattern.data()) != nullptr, "mkdtemp");
  path_ = pattern;
  for (size_t i = 0; i < names.size(); ++i) {
    std::filesystem::create_symlink(files_[i].path(), path_ + "/" + names[i]);
  }
}

InputFolder::~InputFolder() { std::filesystem::remove_all(path_); }

std::pair<std::string_view, std::string_view> cut(std::string_view input) {
  constexpr std::string_view kCut = "\n----\n";
  const size_t at = input.find(kCut);
  if (at == input.npos) return {input, ""};
  return {input.substr(0, at), input.substr(at + kCut.size())};
}

}  // namespace trireme::fuzz

// SPDX-License-Identifier: Apache-2.0
// What fuzz targets are made of. A target takes any bytes, hands them to a parser, and CHECKs what
// the parser promises: an input is refused by an Error that can be shown to anyone, or what it
// became is sound. The same targets run under libFuzzer and, over the inputs kept in
// tests/fuzz/regressions, as a unit test.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace trireme::fuzz {

struct Target {
  const char* name;
  void (*run)(std::string_view input);
};

// The list is in targets.cc.
std::span<const Target> targets();

// Whether `parse` took its input. CHECKs that a refusal has a known code and a message that is
// short and valid UTF-8; anything but an Error ends the process.
bool accepts(const std::function<void()>& parse);

// A file in memory that parsers open by its path.
class InputFile {
 public:
  InputFile();
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  void set(std::string_view bytes);
  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

// A folder whose files lie in memory.
class InputFolder {
 public:
  explicit InputFolder(const std::vector<std::string>& names);
  ~InputFolder();
  InputFolder(const InputFolder&) = delete;
  InputFolder& operator=(const InputFolder&) = delete;

  void set(size_t index, std::string_view bytes) { files_[index].set(bytes); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<InputFile> files_;
};

// An input of several parts: what stands before and behind its first line "----".
std::pair<std::string_view, std::string_view> cut(std::string_view input);

// ---- the targets ----
void fuzz_safetensors(std::string_view input);
void fuzz_shard_index(std::string_view input);
void fuzz_gguf(std::string_view input);
void fuzz_config(std::string_view input);
void fuzz_device_map(std::string_view input);
void fuzz_tokenizer_json(std::string_view input);
void fuzz_sentencepiece(std::string_view input);
void fuzz_sentencepiece_folder(std::string_view input);
void fuzz_tiktoken(std::string_view input);
void fuzz_vocab_merges(std::string_view input);
void fuzz_regex(std::string_view input);
void fuzz_generate_request(std::string_view input);
void fuzz_chat_request(std::string_view input);
void fuzz_chat_template(std::string_view input);
void fuzz_tools_json(std::string_view input);
void fuzz_answer(std::string_view input);
void fuzz_control_frames(std::string_view input);
void fuzz_control_address(std::string_view input);
void fuzz_micro_batch(std::string_view input);
void fuzz_assign(std::string_view input);
void fuzz_machine_file(std::string_view input);
void fuzz_topology_json(std::string_view input);

}  // namespace trireme::fuzz

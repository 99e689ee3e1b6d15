// SPDX-License-Identifier: Apache-2.0
// A process that loads sentencepiece models one after another and uses them as serving does. The
// module carries a protobuf of its own, which must not meet the fuzzer's.
#pragma once

#include <sys/types.h>

#include <string_view>

namespace trireme::fuzz {

enum class ModelKind : char {
  kPieces = 'p',  // a tokenizer.model
  kFolder = 'f',  // tokenizer_config.json, a line "----", a tokenizer.model
  kGguf = 'g',
};

class SentencePieceProcess {
 public:
  // Starts fuzz_sentencepiece_helper, which lies beside this program.
  SentencePieceProcess();
  ~SentencePieceProcess();
  static SentencePieceProcess& instance();
  SentencePieceProcess(const SentencePieceProcess&) = delete;
  SentencePieceProcess& operator=(const SentencePieceProcess&) = delete;

  // CHECKs that the process neither ends nor computes for ten seconds.
  void load(ModelKind kind, std::string_view bytes);

 private:
  int socket_;
  pid_t child_;
};

}  // namespace trireme::fuzz

// SPDX-License-Identifier: Apache-2.0
// From tokens to what a client reads: the piece between the engine and any front (the gRPC service,
// offline generate). Decodes, finds stop strings, counts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/request.h"
#include "coordinator/tokenizer/chat_answer.h"
#include "coordinator/tokenizer/stream_decoder.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "proto/inference.pb.h"

namespace trireme {

// Finds the first stop string in a text that comes in pieces, wherever the pieces are cut. Each
// byte is looked at once for each stop string (Knuth, Morris, Pratt), so a long answer costs no
// more a token.
class StopStrings {
 public:
  // Throws kInvalidArgument for an empty string.
  explicit StopStrings(std::span<const std::string> stops);
  StopStrings(const StopStrings&) = delete;  // matched_ points into it

  // Appends the text; returns what of it, and of what was held back, is certain not to belong to a
  // stop string, or, when one is found, what stood before it. Nothing comes after a match.
  // counts: whether a stop string that ends in this text is one.
  std::string push(std::string_view text, bool counts = true);
  // What was held back, now that the text has ended.
  std::string finish();
  // The stop string found. Of those that end at the same byte, the longest.
  const std::string* matched() const { return matched_; }

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> fallback;  // of each prefix: its longest proper border
    size_t length = 0;             // of the prefix that the text so far ends with
  };
  static void advance(Pattern& pattern, char c);

  std::vector<Pattern> patterns_;
  std::string held_;
  const std::string* matched_ = nullptr;  // into patterns_
};

// Where a generation's output goes. Called like a RequestSink, on the engine's thread.
class GenerationListener {
 public:
  virtual ~GenerationListener() = default;
  virtual void on_delta(const v1::Delta& delta) = 0;
  virtual void on_finished(const v1::Finished& finished) = 0;  // or on_error: the last call
  virtual void on_error(Code code, const std::string& message) = 0;
};

struct GenerationOptions {
  int32_t index = 0;              // which of the answers to a request
  int32_t num_prompt = 0;         // tokens, for the usage
  int32_t min_tokens = 0;         // stop strings that end before more have come do not count
  std::vector<int32_t> stop_ids;  // those of the request: their own text is not part of the answer
  std::vector<std::string> stop;
  bool logprobs = false;
  std::shared_ptr<AnswerReader> answer = {};  // of this generation alone; null: all text is plain
};

// One delta for each token, with the text that it makes certain. The texts together are
// Tokenizer::decode of the ids but the stop id, less what the answer reader takes out, up to a stop
// string; the ids are all that were drawn. Engine's thread only.
class Generation : public RequestSink {
 public:
  // Tokenizer and listener must outlive it. Throws kInvalidArgument for an empty stop string.
  Generation(const Tokenizer& tokenizer, GenerationOptions options, GenerationListener& listener);

  bool on_token(const OutputToken& token) override;
  void on_finished(FinishReason reason, std::optional<int32_t> stop_id) override;
  void on_error(Code code, const std::string& message) override;

 private:
  // The text of a token that is no stop id, before stop strings are looked for.
  std::string plain_text(int32_t id);
  // The end of the text: what decoder, answer reader and stop strings held back.
  std::string finish_text();
  std::string push_text(std::string_view text);
  v1::Delta new_delta() const;

  GenerationOptions options_;
  GenerationListener& listener_;
  const Tokenizer& tokenizer_;
  StreamDecoder decoder_;
  StopStrings stops_;
  bool text_ended_ = false;
  int32_t num_output_ = 0;
};

}  // namespace trireme

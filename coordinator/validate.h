// SPDX-License-Identifier: Apache-2.0
// What a client sent, checked and made into what the engine takes. Nothing here keeps state or does
// I/O. A field out of its range is INVALID_ARGUMENT, one that is set and not supported is
// UNIMPLEMENTED; either message begins with the field's path and says what was found and what is
// allowed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/generation.h"
#include "coordinator/request.h"
#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "proto/cluster.pb.h"
#include "proto/inference.pb.h"

namespace trireme {

// Bounds that no model sets. A prompt's bytes are bounded before they are tokenised.
inline constexpr size_t kMaxPromptBytes = size_t{1} << 20;
inline constexpr size_t kMaxDetokenizedIds = size_t{1} << 18;  // a token may have 100 bytes
inline constexpr int kMaxMessages = 1024;
inline constexpr int kMaxCalls = 128;  // of a message
inline constexpr size_t kMaxCallIdBytes = 64;
inline constexpr int kMaxStops = 16;
inline constexpr size_t kMaxStopBytes = 256;
inline constexpr int kMaxStopIds = 64;
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr int32_t kMaxLogprobs = 20;
inline constexpr int kMaxMetadata = 16;
inline constexpr size_t kMaxMetadataBytes = 512;  // of a key, or of a value
inline constexpr double kMaxTemperature = 100;
inline constexpr double kMinRepetitionPenalty = 0.01;
inline constexpr double kMaxRepetitionPenalty = 10;
inline constexpr double kMaxPenalty = 2;  // frequency and presence, and the same below 0
inline constexpr size_t kMaxBiases = 300;
inline constexpr double kMaxBias = 100;  // and the same below 0
inline constexpr int32_t kMaxAnswers = 128;

// The model that requests are for. Everything outlives this.
struct ServedModel {
  const ModelSpec& spec;
  const Tokenizer& tokenizer;
  const ChatFormat& chat_format;
  int32_t context = 0;  // longest prompt + output: Engine::longest()
};

struct PreparedRequest {
  Request request;                // of answer 0, without deadline and sink
  std::vector<std::string> stop;  // strings that end the text
  int32_t n = 1;                  // answers
  // Of a Chat: what takes an answer's calls out of its text. Null, or gives null: nothing does.
  std::function<std::unique_ptr<AnswerReader>()> make_answer_reader;

  // What to submit for one of the answers, without sink, and how its tokens become text.
  Request answer(int32_t index) const;
  GenerationOptions options(int32_t index) const;
};

// Fills in every default; id and seed are drawn where the client gave none.
PreparedRequest prepare(const v1::GenerateRequest& request, const ServedModel& model);
PreparedRequest prepare(const v1::ChatRequest& request, const ServedModel& model);

std::vector<int32_t> tokenize(const v1::TokenizeRequest& request, const ServedModel& model);
std::string detokenize(const v1::DetokenizeRequest& request, const ServedModel& model);

// A field that a newer client knows and this server does not would otherwise be ignored in silence.
void refuse_unknown_fields(const google::protobuf::Message& message);

// Throws if `id` is not 1 to kMaxRequestIdBytes printable ASCII characters.
void check_request_id(const std::string& id);

}  // namespace trireme

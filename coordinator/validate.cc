// SPDX-License-Identifier: Apache-2.0
#include "coordinator/validate.h"

#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>
#include <random>
#include <string_view>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"
#include "worker/sampler.h"

namespace trireme {
namespace {

std::string to_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string indexed(const std::string& path, int64_t index) {
  return path + '[' + std::to_string(index) + ']';
}

[[noreturn]] void refuse(const std::string& path, const std::string& found,
                         const std::string& allowed) {
  throw Error(Code::kInvalidArgument, path + ": found " + found + ", allowed: " + allowed);
}

void refuse_if_set(bool set, const std::string& path) {
  if (!set) return;
  throw Error(Code::kUnimplemented,
              path + ": is set, and this server does not support it; leave it out");
}

void check_int(const std::string& path, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  refuse(path, std::to_string(value), std::to_string(low) + " to " + std::to_string(high));
}

void check_count(const std::string& path, size_t count, size_t most, const std::string& what) {
  if (count <= most) return;
  refuse(path, std::to_string(count) + ' ' + what, "at most " + std::to_string(most));
}

void check_utf8(const std::string& path, std::string_view text) {
  if (const auto offset = find_broken_utf8(text)) {
    refuse(path, "a byte that is not UTF-8 at offset " + std::to_string(*offset), "valid UTF-8");
  }
}

void check_ids(const std::string& path, const google::protobuf::RepeatedField<int32_t>& ids,
               int32_t vocab_size) {
  for (int i = 0; i < ids.size(); ++i) check_int(indexed(path, i), ids[i], 0, vocab_size - 1);
}

void refuse_unknown(const google::protobuf::Message& message, const std::string& prefix) {
  const google::protobuf::Reflection* reflection = message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection->GetUnknownFields(message);
  if (!unknown.empty()) {
    refuse_if_set(true, prefix + "field number " + std::to_string(unknown.field(0).number()));
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const google::protobuf::FieldDescriptor* field : fields) {
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      refuse_unknown(reflection->GetMessage(message, field), prefix + field->name() + '.');
      continue;
    }
    if (field->is_map()) continue;  // entries hold scalars only
    for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
      refuse_unknown(reflection->GetRepeatedMessage(message, field, i),
                     indexed(prefix + field->name(), i) + '.');
    }
  }
}

std::string random_hex_id() {
  std::random_device device;
  std::string id;
  for (int word = 0; word < 4; ++word) {
    std::array<char, 9> text{};
    std::snprintf(text.data(), text.size(), "%08x", static_cast<uint32_t>(device()));
    id += text.data();
  }
  return id;
}

uint64_t random_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// Written so that NaN fails.
void check_number(const std::string& path, double value, double low, double high,
                  const std::string& allowed) {
  if (!(value >= low && value <= high)) refuse(path, to_text(value), allowed);
}

void check_number(const std::string& path, double value, double low, double high) {
  check_number(path, value, low, high, to_text(low) + " to " + to_text(high));
}

std::vector<std::pair<int32_t, double>> check_biases(const v1::Sampling& sampling,
                                                     int32_t vocab_size) {
  const std::string path = "sampling.logit_bias";
  check_count(path, sampling.logit_bias().size(), kMaxBiases, "entries");
  // A map has no order: by id, so that of several mistakes always the same one is named.
  std::vector<std::pair<int32_t, double>> biases(sampling.logit_bias().begin(),
                                                 sampling.logit_bias().end());
  std::sort(biases.begin(), biases.end());
  for (const auto& [id, bias] : biases) {
    check_int(path + ", a token id", id, 0, vocab_size - 1);
    check_number(indexed(path, id), bias, -kMaxBias, kMaxBias);
  }
  return biases;
}

SamplingParams check_sampling(const v1::Sampling& sampling, int32_t vocab_size) {
  SamplingParams params;
  if (sampling.has_temperature()) {
    params.temperature = sampling.temperature();
    check_number("sampling.temperature", params.temperature, 0, kMaxTemperature,
                 "0 (greedy) to " + to_text(kMaxTemperature));
  }
  if (sampling.has_top_p()) {
    params.top_p = sampling.top_p();
    constexpr double kLeast = std::numeric_limits<double>::denorm_min();
    check_number("sampling.top_p", params.top_p, kLeast, 1, "above 0, up to 1 (off)");
  }
  if (sampling.has_top_k()) {
    check_int("sampling.top_k", sampling.top_k(), 0, vocab_size);
    params.top_k = sampling.top_k();
  }
  if (sampling.has_min_p()) {
    params.min_p = sampling.min_p();
    check_number("sampling.min_p", params.min_p, 0, 1, "0 (off) to 1");
  }
  if (sampling.has_repetition_penalty()) {
    params.repetition_penalty = sampling.repetition_penalty();
    check_number("sampling.repetition_penalty", params.repetition_penalty, kMinRepetitionPenalty,
                 kMaxRepetitionPenalty);
  }
  if (sampling.has_frequency_penalty()) {
    params.frequency_penalty = sampling.frequency_penalty();
    check_number("sampling.frequency_penalty", params.frequency_penalty, -kMaxPenalty, kMaxPenalty);
  }
  if (sampling.has_presence_penalty()) {
    params.presence_penalty = sampling.presence_penalty();
    check_number("sampling.presence_penalty", params.presence_penalty, -kMaxPenalty, kMaxPenalty);
  }
  params.logit_bias = check_biases(sampling, vocab_size);
  params.seed = sampling.has_seed() ? sampling.seed() : random_seed();
  return params;
}

template <class Message>
void check_stops(const Message& message, int32_t vocab_size) {
  check_count("stop", static_cast<size_t>(message.stop_size()), kMaxStops, "strings");
  for (int i = 0; i < message.stop_size(); ++i) {
    const std::string& stop = message.stop(i);
    if (stop.empty()) refuse(indexed("stop", i), "an empty string", "1 byte or more");
    check_count(indexed("stop", i), stop.size(), kMaxStopBytes, "bytes");
    check_utf8(indexed("stop", i), stop);
  }
  check_count("stop_token_ids", static_cast<size_t>(message.stop_token_ids_size()), kMaxStopIds,
              "ids");
  check_ids("stop_token_ids", message.stop_token_ids(), vocab_size);
}

template <class Message>
void check_metadata(const Message& message) {
  check_count("metadata", message.metadata().size(), kMaxMetadata, "entries");
  for (const auto& [key, value] : message.metadata()) {
    check_count("metadata", key.size(), kMaxMetadataBytes, "bytes in a key");
    check_count("metadata", value.size(), kMaxMetadataBytes, "bytes in a value");
  }
}

// The fields that Generate and Chat have in common, all but what depends on the prompt's length.
template <class Message>
PreparedRequest check_common(const Message& message, const ServedModel& model) {
  refuse_unknown_fields(message);
  refuse_if_set(message.has_priority(), "priority");
  if (message.has_n()) check_int("n", message.n(), 1, kMaxAnswers);
  if (message.has_request_id()) check_request_id(message.request_id());
  const int32_t vocab_size = model.spec.vocab_size();
  check_stops(message, vocab_size);
  check_metadata(message);

  PreparedRequest prepared;
  prepared.request.id = message.has_request_id() ? message.request_id() : random_hex_id();
  prepared.request.sampling = check_sampling(message.sampling(), vocab_size);
  if (message.has_logprobs()) {
    check_int("logprobs", message.logprobs(), 0, std::min(kMaxLogprobs, vocab_size));
    prepared.request.sampling.logprobs = message.logprobs();
  }
  prepared.n = message.has_n() ? message.n() : 1;
  prepared.stop.assign(message.stop().begin(), message.stop().end());
  std::vector<int32_t>& stop_ids = prepared.request.stop_ids;
  stop_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  if (!message.ignore_eos()) {
    stop_ids.insert(stop_ids.end(), model.spec.stop_ids().begin(), model.spec.stop_ids().end());
  }
  return prepared;
}

// REQUIRES: max_tokens and the stop ids are entered.
template <class Message>
void set_min_tokens(const Message& message, const ServedModel& model, Request& request) {
  if (!message.has_min_tokens()) return;
  const int32_t most = request.max_tokens;
  if (message.min_tokens() < 0 || message.min_tokens() > most) {
    refuse("min_tokens", std::to_string(message.min_tokens()),
           "0 to max_tokens, which is " + std::to_string(most));
  }
  std::vector<int32_t>& banned = request.sampling.banned_ids;
  banned = request.stop_ids;
  std::sort(banned.begin(), banned.end());
  banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  // Ids from the tokenizer's size on are never drawn.
  const auto num_banned =
      std::lower_bound(banned.begin(), banned.end(), model.tokenizer.size()) - banned.begin();
  if (message.min_tokens() > 0 && num_banned >= model.tokenizer.size()) {
    refuse("min_tokens", std::to_string(message.min_tokens()),
           "0, for every token is one that stops");
  }
  request.sampling.min_tokens = message.min_tokens();
}

// Enters the prompt, and max_tokens, which by default is what the prompt leaves of the context.
template <class Message>
void set_prompt(const Message& message, const ServedModel& model, const std::string& path,
                std::vector<int32_t> prompt, PreparedRequest& prepared) {
  const int64_t length = static_cast<int64_t>(prompt.size());
  if (length == 0) refuse(path, "no token", "at least one");
  if (length >= model.context) {
    refuse(path, std::to_string(length) + " tokens",
           "at most " + std::to_string(model.context - 1) + ", for the context served is " +
               std::to_string(model.context) + " and must hold one token of output too");
  }
  const int64_t room = model.context - length;
  if (message.has_max_tokens()) {
    const int64_t wanted = message.max_tokens();
    if (wanted < 1 || wanted > room) {
      refuse("max_tokens", std::to_string(wanted),
             "1 to " + std::to_string(room) + " (context " + std::to_string(model.context) +
                 " less a prompt of " + std::to_string(length) + " tokens)");
    }
  }
  prepared.request.max_tokens =
      message.has_max_tokens() ? message.max_tokens() : static_cast<int32_t>(room);
  prepared.request.prompt = std::move(prompt);
  set_min_tokens(message, model, prepared.request);
}

std::vector<int32_t> prompt_of(const v1::GenerateRequest& request, const ServedModel& model) {
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    // Before the ids are looked at one by one: the message may hold a million.
    if (ids.size() < model.context) check_ids("token_ids.ids", ids, model.spec.vocab_size());
    return {ids.begin(), ids.end()};
  }
  if (!request.has_text()) refuse("prompt", "neither text nor token_ids", "one of them");
  if (request.text().empty()) refuse("text", "an empty text", "1 byte or more");
  check_count("text", request.text().size(), kMaxPromptBytes, "bytes");
  check_utf8("text", request.text());
  return model.chat_format.plain(request.text());
}

ToolCall call_of(const v1::ToolCall& call, const std::string& path) {
  if (!is_tool_name(call.name())) {
    refuse(path + ".name", std::to_string(call.name().size()) + " bytes",
           "1 to 64 bytes without spaces and control characters");
  }
  check_utf8(path + ".name", call.name());
  check_utf8(path + ".id", call.id());
  check_count(path + ".id", call.id().size(), kMaxCallIdBytes, "bytes");
  return {call.name(), read_arguments(path + ".arguments_json", call.arguments_json()), call.id()};
}

// Roles, and what this model's format can hold, are ChatFormat's to check.
ChatTurn turn_of(const v1::ChatMessage& message, const std::string& path) {
  check_utf8(path + ".content", message.content());
  check_utf8(path + ".name", message.name());
  check_utf8(path + ".tool_call_id", message.tool_call_id());
  check_count(path + ".tool_call_id", message.tool_call_id().size(), kMaxCallIdBytes, "bytes");
  const bool is_tool = message.role() == "tool" || message.role() == "observation";
  if (message.has_tool_call_id() && !is_tool) {
    refuse(path + ".tool_call_id", "it with the role \"" + message.role().substr(0, 32) + '"',
           "with \"tool\" only");
  }
  if (message.has_name() && !is_tool_name(message.name())) {
    refuse(path + ".name", std::to_string(message.name().size()) + " bytes",
           "1 to 64 bytes without spaces and control characters");
  }
  check_count(path + ".tool_calls", static_cast<size_t>(message.tool_calls_size()), kMaxCalls,
              "calls");
  ChatTurn turn{message.role(), message.content()};
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    turn.calls.push_back(call_of(message.tool_calls(i), indexed(path + ".tool_calls", i)));
  }
  turn.call_id = message.tool_call_id();
  if (!is_tool) turn.metadata = message.name();
  return turn;
}

Conversation conversation_of(const v1::ChatRequest& request) {
  if (request.messages().empty()) refuse("messages", "none", "at least one");
  check_count("messages", static_cast<size_t>(request.messages_size()), kMaxMessages, "messages");
  std::vector<ChatTurn> turns;
  size_t bytes = 0;
  for (int i = 0; i < request.messages_size(); ++i) {
    bytes += request.messages(i).content().size();
    for (const v1::ToolCall& call : request.messages(i).tool_calls()) {
      bytes += call.arguments_json().size();
    }
    check_count("messages", bytes, kMaxPromptBytes, "bytes of content or more");
    turns.push_back(turn_of(request.messages(i), indexed("messages", i)));
  }
  std::vector<Tool> tools;
  if (request.has_tools_json()) tools = read_tools(request.tools_json());
  return {std::move(turns), std::move(tools)};
}

}  // namespace

Request PreparedRequest::answer(int32_t index) const {
  Request one = request;
  one.index = index;
  one.sampling.seed = seed_of_answer(request.sampling.seed, index);
  return one;
}

GenerationOptions PreparedRequest::options(int32_t index) const {
  return {.index = index,
          .num_prompt = static_cast<int32_t>(request.prompt.size()),
          .min_tokens = request.sampling.min_tokens,
          .stop_ids = request.stop_ids,
          .stop = stop,
          .logprobs = request.sampling.logprobs > 0};
}

void check_request_id(const std::string& id) {
  check_count("request_id", id.size(), kMaxRequestIdBytes, "bytes");
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (id.empty() || !printable) {
    refuse("request_id", id.empty() ? "nothing" : "a character that is a space or not printable",
           "1 to " + std::to_string(kMaxRequestIdBytes) + " printable ASCII characters");
  }
}

PreparedRequest prepare(const v1::GenerateRequest& request, const ServedModel& model) {
  PreparedRequest prepared = check_common(request, model);
  const std::string path = request.has_token_ids() ? "token_ids" : "text";
  set_prompt(request, model, path, prompt_of(request, model), prepared);
  return prepared;
}

PreparedRequest prepare(const v1::ChatRequest& request, const ServedModel& model) {
  PreparedRequest prepared = check_common(request, model);
  const Conversation conversation = conversation_of(request);
  if (!request.ignore_eos()) {
    // The end of an answer in this chat format; a plain text has no turns that could end.
    const std::vector<int32_t>& ends = model.chat_format.stop_ids();
    prepared.request.stop_ids.insert(prepared.request.stop_ids.end(), ends.begin(), ends.end());
  }
  set_prompt(request, model, "messages", model.chat_format.render(conversation), prepared);
  prepared.make_answer_reader = [&format = model.chat_format, tools = conversation.tools] {
    return format.answer_reader(tools);
  };
  return prepared;
}

void refuse_unknown_fields(const google::protobuf::Message& message) {
  refuse_unknown(message, "");
}

std::vector<int32_t> tokenize(const v1::TokenizeRequest& request, const ServedModel& model) {
  refuse_unknown_fields(request);
  check_count("text", request.text().size(), kMaxPromptBytes, "bytes");
  check_utf8("text", request.text());
  return model.tokenizer.encode(request.text());
}

std::string detokenize(const v1::DetokenizeRequest& request, const ServedModel& model) {
  refuse_unknown_fields(request);
  check_count("token_ids", static_cast<size_t>(request.token_ids_size()), kMaxDetokenizedIds,
              "ids");
  check_ids("token_ids", request.token_ids(), model.spec.vocab_size());
  return model.tokenizer.decode(
      {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())});
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// What clients send: the bytes of a GenerateRequest, and of a ChatRequest in every chat format.
#include <algorithm>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/served.h"

namespace trireme::fuzz {

namespace {

// The engine takes it as it is.
void check_prepared(const PreparedRequest& prepared, const ServedModel& model) {
  const Request& request = prepared.request;
  const auto is_id = [&](int32_t id) { return id >= 0 && id < model.spec.vocab_size(); };
  CHECK(!request.prompt.empty() && std::all_of(request.prompt.begin(), request.prompt.end(), is_id),
        "a prompt of ids");
  CHECK(std::all_of(request.stop_ids.begin(), request.stop_ids.end(), is_id), "stop ids");
  CHECK(
      request.max_tokens >= 1 && request.prompt.size() + static_cast<size_t>(request.max_tokens) <=
                                     static_cast<size_t>(model.context),
      "prompt and output fit the context");
  const SamplingParams& sampling = request.sampling;
  CHECK(sampling.temperature >= 0 && sampling.temperature <= kMaxTemperature, "temperature");
  CHECK(sampling.top_p > 0 && sampling.top_p <= 1, "top_p");
  CHECK(sampling.top_k >= 0 && sampling.top_k <= model.spec.vocab_size(), "top_k");
  CHECK(sampling.logprobs >= 0 && sampling.logprobs <= kMaxLogprobs, "logprobs");
  CHECK(prepared.stop.size() <= kMaxStops, "stop strings");
  check_request_id(request.id);
}

std::vector<int32_t> specials(const PreparedRequest& prepared, const ServedModel& model) {
  std::vector<int32_t> ids;
  for (const int32_t id : prepared.request.prompt) {
    if (model.tokenizer.is_special(id)) ids.push_back(id);
  }
  return ids;
}

// As many, which say nothing of themselves.
std::string plain_tools(size_t count) {
  std::string json = "[";
  for (size_t i = 0; i < count; ++i) {
    json += (i > 0 ? R"(, {"name": "t)" : R"({"name": "t)") + std::to_string(i) + "\"}";
  }
  return json + "]";
}

}  // namespace

void fuzz_generate_request(std::string_view input) {
  v1::GenerateRequest request;
  if (!request.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
  const ServedModel model = served().model();
  (void)accepts([&] { check_prepared(prepare(request, model), model); });
}

// The first byte chooses the format.
void fuzz_chat_request(std::string_view input) {
  if (input.empty()) return;
  v1::ChatRequest request;
  if (!request.ParseFromArray(input.data() + 1, static_cast<int>(input.size() - 1))) return;
  const ServedModel model = every_format().model(static_cast<uint8_t>(input[0]));
  PreparedRequest prepared;
  if (!accepts([&] { prepared = prepare(request, model); })) return;
  check_prepared(prepared, model);
  const auto reader = prepared.make_answer_reader();
  CHECK(reader == nullptr || (reader->finish().empty() && reader->calls().empty()), "no answer");
  // What is said cannot add a turn: with other contents, tools and arguments the special tokens are
  // the same.
  v1::ChatRequest other = request;
  for (v1::ChatMessage& message : *other.mutable_messages()) {
    if (!message.content().empty()) message.set_content("x");
    for (v1::ToolCall& call : *message.mutable_tool_calls()) call.set_arguments_json("{}");
  }
  if (other.has_tools_json())
    other.set_tools_json(plain_tools(read_tools(other.tools_json()).size()));
  CHECK(specials(prepare(other, model), model) == specials(prepared, model),
        "the roles alone make the turns");
}

}  // namespace trireme::fuzz

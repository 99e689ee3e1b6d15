// SPDX-License-Identifier: Apache-2.0
// What clients send: the bytes of a GenerateRequest, and of a ChatRequest in every chat format.
#include <algorithm>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/served.h"
#include "worker/model/family.h"

namespace trireme::fuzz {

Served::Served(const std::string& name)
    : path(std::string(TRIREME_SOURCE_DIR) + "/tests/data/" + name),
      spec(read_model_spec(path)),
      tokenizer(load_tokenizer(path, spec.family())),
      chat(make_chat_format(path, spec.family(), spec.bos_id(), *tokenizer)) {}

const Served& served(size_t number) {
  static const Served kAll[] = {Served("tiny-llama3"), Served("tiny-qwen2"), Served("tiny-glm"),
                                Served("tiny-llama3.1"), Served("tiny-qwen3")};
  return kAll[number % std::size(kAll)];
}

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

}  // namespace

void fuzz_generate_request(std::string_view input) {
  v1::GenerateRequest request;
  if (!request.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
  const ServedModel model = served(0).model();
  (void)accepts([&] { check_prepared(prepare(request, model), model); });
}

// The first byte chooses the format.
void fuzz_chat_request(std::string_view input) {
  if (input.empty()) return;
  v1::ChatRequest request;
  if (!request.ParseFromArray(input.data() + 1, static_cast<int>(input.size() - 1))) return;
  const ServedModel model = served(static_cast<uint8_t>(input[0])).model();
  PreparedRequest prepared;
  if (!accepts([&] { prepared = prepare(request, model); })) return;
  check_prepared(prepared, model);
  // What the messages say cannot add a turn: with other contents the special tokens are the same.
  const auto specials = [&](const PreparedRequest& one) {
    std::vector<int32_t> ids;
    for (const int32_t id : one.request.prompt) {
      if (model.tokenizer.is_special(id)) ids.push_back(id);
    }
    return ids;
  };
  v1::ChatRequest other;
  for (const v1::ChatMessage& message : request.messages()) {
    v1::ChatMessage& copy = *other.add_messages();
    copy.set_role(message.role());
    copy.set_content("x");
  }
  CHECK(specials(prepare(other, model)) == specials(prepared), "the roles alone make the turns");
}

}  // namespace trireme::fuzz

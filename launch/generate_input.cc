// SPDX-License-Identifier: Apache-2.0
#include "launch/generate_input.h"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace trireme {
namespace {

using nlohmann::json;

template <class Message>
Message with_fields(const GenerateFlags& flags) {
  Message message;
  v1::Sampling& sampling = *message.mutable_sampling();
  sampling.set_temperature(flags.temperature);
  sampling.set_top_p(flags.top_p);
  sampling.set_top_k(flags.top_k);
  sampling.set_min_p(flags.min_p);
  sampling.set_repetition_penalty(flags.repetition_penalty);
  sampling.set_frequency_penalty(flags.frequency_penalty);
  sampling.set_presence_penalty(flags.presence_penalty);
  sampling.mutable_logit_bias()->insert(flags.logit_bias.begin(), flags.logit_bias.end());
  if (flags.seed) sampling.set_seed(*flags.seed);
  message.mutable_stop()->Assign(flags.stop.begin(), flags.stop.end());
  message.mutable_stop_token_ids()->Assign(flags.stop_token_ids.begin(),
                                           flags.stop_token_ids.end());
  if (flags.max_tokens) message.set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens) message.set_min_tokens(*flags.min_tokens);
  message.set_n(flags.n);
  message.set_ignore_eos(flags.ignore_eos);
  message.set_logprobs(flags.logprobs);
  return message;
}

GenerateItem text_item(const std::string& where, const std::string& text,
                       const GenerateFlags& flags) {
  auto message = with_fields<v1::GenerateRequest>(flags);
  message.set_text(text);
  return {where, std::move(message)};
}

GenerateItem chat_item(const std::string& where, const std::string& text,
                       const GenerateFlags& flags) {
  auto message = with_fields<v1::ChatRequest>(flags);
  v1::ChatMessage& turn = *message.add_messages();
  turn.set_role("user");
  turn.set_content(text);
  return {where, std::move(message)};
}

GenerateItem ids_item(const std::string& where, const std::vector<int32_t>& ids,
                      const GenerateFlags& flags) {
  auto message = with_fields<v1::GenerateRequest>(flags);
  message.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  return {where, std::move(message)};
}

// One value of a line, with the words for what is wrong with it.
class Value {
 public:
  Value(const std::string& where, const std::string& key, const json& value)
      : where_(where), key_(key), value_(value) {}

  std::string text() const {
    if (!value_.is_string()) refuse("a string");
    return value_.get<std::string>();
  }
  bool flag() const {
    if (!value_.is_boolean()) refuse("true or false");
    return value_.get<bool>();
  }
  double number() const {
    if (!value_.is_number()) refuse("a number");
    return value_.get<double>();
  }
  int32_t integer() const {
    constexpr auto kLow = std::numeric_limits<int32_t>::min();
    constexpr auto kHigh = std::numeric_limits<int32_t>::max();
    // An unsigned value that does not fit into int64 is positive and too large as well.
    const bool fits = value_.is_number_integer() &&
                      (!value_.is_number_unsigned() || value_.get<uint64_t>() <= kHigh) &&
                      value_.get<int64_t>() >= kLow && value_.get<int64_t>() <= kHigh;
    if (!fits) refuse("an integer of 32 bits");
    return value_.get<int32_t>();
  }
  uint64_t seed() const {
    if (!value_.is_number_unsigned()) refuse("an integer of 0 to 2^64 - 1");
    return value_.get<uint64_t>();
  }
  std::vector<int32_t> ids() const {
    if (!value_.is_array()) refuse("a list of token ids");
    std::vector<int32_t> ids;
    for (const json& id : value_) ids.push_back(Value(where_, key_, id).integer());
    return ids;
  }
  std::map<int32_t, double> biases() const {
    const std::string allowed = "an object such as {\"198\": -100}";
    if (!value_.is_object()) refuse(allowed);
    std::map<int32_t, double> biases;
    for (const auto& [key, bias] : value_.items()) {
      int32_t id = 0;
      const char* const end = key.data() + key.size();
      const auto [stop, error] = std::from_chars(key.data(), end, id);
      if (error != std::errc() || stop != end) refuse(allowed);
      if (!biases.emplace(id, Value(where_, key_, bias).number()).second) refuse(allowed);
    }
    return biases;
  }
  std::vector<std::string> texts() const {
    if (value_.is_string()) return {text()};
    if (!value_.is_array()) refuse("a string or a list of strings");
    std::vector<std::string> texts;
    for (const json& one : value_) texts.push_back(Value(where_, key_, one).text());
    return texts;
  }

 private:
  [[noreturn]] void refuse(const std::string& allowed) const {
    throw Error(Code::kInvalidArgument, where_ + ": \"" + key_ + "\": found " + value_.type_name() +
                                            ", allowed: " + allowed);
  }

  const std::string& where_;
  const std::string& key_;
  const json& value_;
};

// A key of a line that stands for a flag. False: there is no such key.
bool set_flag(const std::string& key, const Value& value, GenerateFlags& flags) {
  using Set = void (*)(GenerateFlags&, const Value&);
  static const std::map<std::string, Set> kSetters{
      {"max_tokens", [](auto& to, const auto& from) { to.max_tokens = from.integer(); }},
      {"min_tokens", [](auto& to, const auto& from) { to.min_tokens = from.integer(); }},
      {"n", [](auto& to, const auto& from) { to.n = from.integer(); }},
      {"temperature", [](auto& to, const auto& from) { to.temperature = from.number(); }},
      {"top_p", [](auto& to, const auto& from) { to.top_p = from.number(); }},
      {"top_k", [](auto& to, const auto& from) { to.top_k = from.integer(); }},
      {"min_p", [](auto& to, const auto& from) { to.min_p = from.number(); }},
      {"repetition_penalty",
       [](auto& to, const auto& from) { to.repetition_penalty = from.number(); }},
      {"frequency_penalty",
       [](auto& to, const auto& from) { to.frequency_penalty = from.number(); }},
      {"presence_penalty", [](auto& to, const auto& from) { to.presence_penalty = from.number(); }},
      {"logit_bias", [](auto& to, const auto& from) { to.logit_bias = from.biases(); }},
      {"seed", [](auto& to, const auto& from) { to.seed = from.seed(); }},
      {"stop", [](auto& to, const auto& from) { to.stop = from.texts(); }},
      {"stop_token_ids", [](auto& to, const auto& from) { to.stop_token_ids = from.ids(); }},
      {"ignore_eos", [](auto& to, const auto& from) { to.ignore_eos = from.flag(); }},
      {"logprobs", [](auto& to, const auto& from) { to.logprobs = from.integer(); }},
  };
  const auto setter = kSetters.find(key);
  if (setter == kSetters.end()) return false;
  setter->second(flags, value);
  return true;
}

GenerateItem line_item(const std::string& where, const std::string& line, GenerateFlags flags) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    throw Error(Code::kInvalidArgument,
                where + ": found no JSON object, needed one such as {\"prompt\": \"Hello\"}");
  }
  std::vector<std::string> prompts;
  for (const auto& [key, value] : object.items()) {
    if (key == "prompt" || key == "chat" || key == "prompt_ids") {
      prompts.push_back(key);
    } else if (!set_flag(key, Value(where, key, value), flags)) {
      throw Error(Code::kInvalidArgument,
                  where + ": there is no key \"" + key + "\"; see: trireme generate --help");
    }
  }
  if (prompts.size() != 1) {
    throw Error(Code::kInvalidArgument, where + ": found " + std::to_string(prompts.size()) +
                                            " of the keys prompt, chat and prompt_ids, needed one");
  }
  const Value value(where, prompts[0], object.at(prompts[0]));
  if (prompts[0] == "prompt") return text_item(where, value.text(), flags);
  if (prompts[0] == "chat") return chat_item(where, value.text(), flags);
  return ids_item(where, value.ids(), flags);
}

}  // namespace

std::vector<GenerateItem> read_items(const GenerateFlags& flags) {
  std::vector<GenerateItem> items;
  for (const auto& text : flags.prompts) items.push_back(text_item("--prompt", text, flags));
  for (const auto& text : flags.chats) items.push_back(chat_item("--chat", text, flags));
  for (const auto& ids : flags.prompt_ids) items.push_back(ids_item("--prompt_ids", ids, flags));
  if (flags.input.empty()) return items;

  std::ifstream file(flags.input);
  if (!file) {
    throw Error(Code::kNotFound,
                "cannot read --input " + flags.input + ": " + std::strerror(errno));
  }
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    items.push_back(line_item(flags.input + ":" + std::to_string(number), line, flags));
  }
  if (file.bad()) {  // a folder, or a disk that fails: what was read is not all
    throw Error(Code::kNotFound,
                "cannot read --input " + flags.input + " to its end: " + std::strerror(errno));
  }
  if (items.empty()) {
    throw Error(Code::kInvalidArgument, "--input " + flags.input + ": found no line with a prompt");
  }
  return items;
}

}  // namespace trireme

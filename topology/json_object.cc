// SPDX-License-Identifier: Apache-2.0
#include "topology/json_object.h"

#include <functional>
#include <set>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 32;
constexpr uint64_t kMaxValues = 4'000'000;

// Sees every event of the parser and stops it at a limit.
class Guard {
 public:
  explicit Guard(const std::string& what) : what_(what) {}

  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    using Event = json::parse_event_t;
    if (depth > kMaxDepth)
      fail("it is nested deeper than " + std::to_string(kMaxDepth) + " levels");
    if (++values_ > kMaxValues) fail("it has more than " + std::to_string(kMaxValues) + " values");
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    // The parser would keep the last of two equal keys: two readers could see two files.
    if (event == Event::key && !keys_.back().insert(parsed.get<std::string>()).second) {
      fail("the key \"" + parsed.get<std::string>().substr(0, 80) + "\" occurs twice");
    }
    return true;
  }

 private:
  [[noreturn]] void fail(const std::string& found) {
    throw Error(Code::kInvalidArgument, what_ + ": " + found);
  }

  const std::string& what_;
  uint64_t values_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

json parse_json_object(std::string_view text, const std::string& what) {
  Guard guard(what);
  json object;
  try {
    object = json::parse(text.begin(), text.end(), std::ref(guard));
  } catch (const json::exception& error) {
    // The library's own message may quote a megabyte of the file.
    const auto* parse = dynamic_cast<const json::parse_error*>(&error);
    throw Error(Code::kInvalidArgument,
                what + ": it is no valid JSON" +
                    (parse != nullptr ? " at byte " + std::to_string(parse->byte) : ""));
  }
  if (!object.is_object()) {
    throw Error(Code::kInvalidArgument,
                what + ": it is a JSON " + object.type_name() + "; an object is needed");
  }
  return object;
}

}  // namespace trireme

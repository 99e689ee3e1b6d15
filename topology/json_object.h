// SPDX-License-Identifier: Apache-2.0
// JSON text that a hostile file cannot make expensive.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace trireme {

// Throws kInvalidArgument, beginning with `what`, unless text is an object without repeated keys,
// at most 32 levels deep and of at most four million values.
nlohmann::json parse_json_object(std::string_view text, const std::string& what);

}  // namespace trireme

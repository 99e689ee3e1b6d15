// SPDX-License-Identifier: Apache-2.0
// One line per event on stderr: "I 10:31:07.412 rank 3 stage.cc:88 loaded layers 14-20".
// Thread-safe: a line is one write. Never the text of a prompt or an answer.
#pragma once

#include <source_location>
#include <string_view>

namespace trireme {

// Names this process in every later line; call once, before threads start.
void set_log_rank(int rank);

void log_info(std::string_view text, std::source_location where = std::source_location::current());
void log_warn(std::string_view text, std::source_location where = std::source_location::current());
void log_error(std::string_view text, std::source_location where = std::source_location::current());

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// What the files of byte-pair encoding have in common.
#pragma once

#include <string>

#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/json_fields.h"

namespace trireme {

// An object of ids by token. Throws kInvalidArgument naming the place of what is wrong.
void read_vocabulary(const JsonField& field, BpeModel& model);

// A merge as text, "left right"; false where it has not two parts with one space between.
bool add_merge(const std::string& line, BpeModel& model);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Opens trireme_sentencepiece.so, once in a process.
#pragma once

#include "coordinator/tokenizer/sentencepiece_api.h"

namespace trireme {

// Looks in the folder of the executable, then in its parent. Throws kNotFound naming both.
const TriremeSentencePiece& sentencepiece_module();

}  // namespace trireme

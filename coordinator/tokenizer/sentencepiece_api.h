// SPDX-License-Identifier: Apache-2.0
// The border of the module trireme_sentencepiece.so, which alone links sentencepiece: Debian's
// library exports a protobuf of its own, and a program that links it beside gRPC aborts before
// main. Only C types cross, and no memory changes hands; nothing of the module throws.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum TriremePieceKind { kPieceText, kPieceUnknown, kPieceControl, kPieceByte };

// Called before the function returns, once, with what it found. Must not throw.
typedef void (*TriremeBytesSink)(void* to, const char* bytes, size_t size);
typedef void (*TriremeIdsSink)(void* to, const int32_t* ids, size_t count);

struct TriremeSentencePiece {
  // A model from the bytes of tokenizer.model, or null and the reason in `error`.
  void* (*open)(const char* bytes, size_t size, void* error, TriremeBytesSink error_sink);
  void (*close)(void* model);
  int32_t (*size)(const void* model);
  // Text of a piece as it stands in the vocabulary (a byte piece: its one byte). id must be in [0,
  // size).
  TriremePieceKind (*piece)(const void* model, int32_t id, void* to, TriremeBytesSink sink);
  // False: sentencepiece failed.
  bool (*encode)(const void* model, const char* text, size_t size, void* to, TriremeIdsSink sink);
  bool (*decode)(const void* model, const int32_t* ids, size_t count, void* to,
                 TriremeBytesSink sink);
};

// The module's one symbol.
const TriremeSentencePiece* trireme_sentencepiece();
}

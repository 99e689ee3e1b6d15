// SPDX-License-Identifier: Apache-2.0
// The module behind sentencepiece_api.h. Includes nothing else of the project.
#include <sentencepiece_processor.h>

#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/sentencepiece_api.h"

namespace {

using sentencepiece::SentencePieceProcessor;

const SentencePieceProcessor& processor_of(const void* model) {
  return *static_cast<const SentencePieceProcessor*>(model);
}

void* open_model(const char* bytes, size_t size, void* error, TriremeBytesSink error_sink) {
  std::string reason;
  try {
    auto processor = std::make_unique<SentencePieceProcessor>();
    const auto status = processor->LoadFromSerializedProto(std::string_view(bytes, size));
    if (status.ok()) return processor.release();
    reason = status.ToString();
  } catch (const std::exception& e) {
    reason = e.what();
  }
  error_sink(error, reason.data(), reason.size());
  return nullptr;
}

void close_model(void* model) { delete static_cast<SentencePieceProcessor*>(model); }

int32_t size_of(const void* model) { return processor_of(model).GetPieceSize(); }

TriremePieceKind piece_of(const void* model, int32_t id, void* to, TriremeBytesSink sink) {
  const SentencePieceProcessor& processor = processor_of(model);
  const std::string& piece = processor.IdToPiece(id);
  if (processor.IsByte(id)) {
    // <0x41>; the loader of sentencepiece has checked the form.
    const char byte = static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));
    sink(to, &byte, 1);
    return kPieceByte;
  }
  sink(to, piece.data(), piece.size());
  if (processor.IsControl(id)) return kPieceControl;
  return processor.IsUnknown(id) ? kPieceUnknown : kPieceText;
}

bool encode(const void* model, const char* text, size_t size, void* to, TriremeIdsSink sink) {
  try {
    std::vector<int> ids;
    if (!processor_of(model).Encode(std::string_view(text, size), &ids).ok()) return false;
    sink(to, ids.data(), ids.size());
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

bool decode(const void* model, const int32_t* ids, size_t count, void* to, TriremeBytesSink sink) {
  try {
    std::string text;
    if (!processor_of(model).Decode(std::vector<int>(ids, ids + count), &text).ok()) return false;
    sink(to, text.data(), text.size());
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

const TriremeSentencePiece kApi = {open_model, close_model, size_of, piece_of, encode, decode};

}  // namespace

extern "C" __attribute__((visibility("default"))) const TriremeSentencePiece*
trireme_sentencepiece() {
  return &kApi;
}

// SPDX-License-Identifier: Apache-2.0
// Checkpoints: safetensors, the index of shards, GGUF.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/sentencepiece_process.h"
#include "worker/model/checkpoint.h"
#include "worker/model/family.h"
#include "worker/model/gguf.h"
#include "worker/model/quant.h"
#include "worker/model/safetensors.h"

namespace trireme::fuzz {
namespace {

// Every tensor lies in its file, and no two share a byte.
template <typename Tensors>
void check_places(const Tensors& tensors, uint64_t file_bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [name, tensor] : tensors) {
    CHECK(tensor.offset <= file_bytes && tensor.bytes <= file_bytes - tensor.offset, name);
    if (tensor.bytes > 0) ranges.emplace_back(tensor.offset, tensor.offset + tensor.bytes);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    CHECK(ranges[i - 1].second <= ranges[i].first, "two tensors share a byte");
  }
}

// Reads the first and the last rows, and a column in the middle, of a tensor that may be read.
void read_corners(Checkpoint& checkpoint, const std::string& name) {
  constexpr int64_t kMaxColumns = 1 << 16;
  const TensorInfo* tensor = checkpoint.find(name);
  CHECK(tensor != nullptr, name);
  if (tensor->shape.size() > 2 || tensor->cols() > kMaxColumns) return;
  if (tensor->rows() == 0 || tensor->cols() == 0) return;
  std::vector<float> values(static_cast<size_t>(tensor->cols()));
  const auto read = [&](int64_t row, int64_t col, int64_t cols) {
    return accepts(
        [&] { checkpoint.read(*tensor, row, col, Tensor(values.data(), DType::kF32, 1, cols)); });
  };
  if (!read(0, 0, tensor->cols())) return;
  CHECK(read(tensor->rows() - 1, 0, tensor->cols()), "what can be read, can be read to its end");
  CHECK(read(tensor->rows() / 2, tensor->cols() / 2, 1), "and in any column");
}

// The same tensors as a file of our own.
std::string written_again(const SafetensorsFile& file) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : file.tensors()) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes}}};
    data.append(reinterpret_cast<const char*>(file.file().data()) + tensor.offset, tensor.bytes);
  }
  const std::string text = header.dump();
  std::string bytes;
  for (size_t i = 0; i < 8; ++i) bytes += static_cast<char>(uint64_t{text.size()} >> (8 * i));
  return bytes + text + data;
}

}  // namespace

void fuzz_safetensors(std::string_view input) {
  static InputFolder folder({"model.safetensors"});
  static InputFile copy;
  folder.set(0, input);
  std::unique_ptr<SafetensorsFile> file;
  const bool taken = accepts(
      [&] { file = std::make_unique<SafetensorsFile>(folder.path() + "/model.safetensors"); });
  std::unique_ptr<Checkpoint> checkpoint;
  CHECK(accepts([&] { checkpoint = Checkpoint::open(folder.path()); }) == taken,
        "the file and the checkpoint are refused alike");
  if (!taken) return;
  check_places(file->tensors(), file->file().size());
  uint64_t total = 0;
  for (const auto& [name, tensor] : file->tensors()) {
    total += tensor.bytes;
    read_corners(*checkpoint, name);
  }
  CHECK(total == checkpoint->total_bytes() && total <= input.size(), "the sum of the tensors");

  copy.set(written_again(*file));
  const SafetensorsFile again(copy.path());
  CHECK(again.tensors().size() == file->tensors().size(), "written again it is the same");
  for (const auto& [name, tensor] : file->tensors()) {
    const SafetensorsTensor& other = again.tensors().at(name);
    CHECK(other.dtype == tensor.dtype && other.shape == tensor.shape && other.bytes == tensor.bytes,
          "written again it is the same");
  }
}

// Beside the index lie two good shards: "a" with the tensors x and y, "b" with z.
void fuzz_shard_index(std::string_view input) {
  static InputFolder folder({"model.safetensors.index.json", "a", "b"});
  static const bool prepared = [] {
    const auto shard = [](const std::string& header, size_t data_bytes) {
      std::string bytes(1, static_cast<char>(header.size()));
      return bytes + std::string(7, '\0') + header + std::string(data_bytes, '\0');
    };
    folder.set(1, shard(R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                        R"("y":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
                        6));
    folder.set(2, shard(R"({"z":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})", 4));
    return true;
  }();
  CHECK(prepared, "");
  folder.set(0, input);
  std::unordered_map<std::string, std::string> map;
  const std::string path = folder.path() + "/model.safetensors.index.json";
  if (!accepts([&] { map = read_safetensors_index(path); })) return;
  for (const auto& [name, file] : map) {
    CHECK(!file.empty() && file.find('/') == file.npos && file != "." && file != "..",
          "a shard lies in the folder of its index");
  }
  std::unique_ptr<Checkpoint> checkpoint;
  if (!accepts([&] { checkpoint = Checkpoint::open(folder.path()); })) return;
  for (const auto& [name, file] : map) {
    CHECK(file == "a" || file == "b", file);
    read_corners(*checkpoint, name);
  }
}

void fuzz_gguf(std::string_view input) {
  static InputFile file;
  file.set(input);
  std::unique_ptr<GgufFile> gguf;
  if (!accepts([&] { gguf = std::make_unique<GgufFile>(file.path()); })) return;
  check_places(gguf->tensors(), input.size());
  std::unique_ptr<Checkpoint> checkpoint;
  CHECK(accepts([&] { checkpoint = Checkpoint::open(file.path()); }), "its tensors are known");
  for (const auto& [name, tensor] : gguf->tensors()) read_corners(*checkpoint, name);

  ModelSpec spec;
  if (accepts([&] { spec = read_model_spec(file.path()); })) {
    CHECK(spec.num_heads() % spec.num_kv_heads() == 0 && spec.vocab_size() > 0, "a sound model");
  }
  bool pieces = false;
  if (!accepts([&] { pieces = gguf->string("tokenizer.ggml.model") == "llama"; })) return;
  if (pieces) return SentencePieceProcess::instance().load(ModelKind::kGguf, input);
  std::unique_ptr<Tokenizer> tokenizer;
  if (!accepts([&] { tokenizer = load_tokenizer(file.path(), spec.family()); })) return;
  (void)accepts([&] {
    const auto chat = make_chat_format(file.path(), spec.family(), spec.bos_id(), *tokenizer);
    for (const int32_t id : chat->plain("Hello, 12 worlds\n")) {
      CHECK(id >= 0 && id < std::max(tokenizer->size(), spec.vocab_size()), "an id of the model");
    }
  });
}

}  // namespace trireme::fuzz

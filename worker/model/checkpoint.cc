// SPDX-License-Identifier: Apache-2.0
#include "worker/model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <unordered_map>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "worker/model/gguf_set.h"
#include "worker/model/quant.h"
#include "worker/model/safetensors.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

struct StoredTensor : TensorInfo {
  const StoredType* stored = nullptr;  // null: a type unknown here
  const MappedFile* file = nullptr;
  uint64_t offset = 0;
};

// Every format comes down to this: tensors at places in mapped files.
class MappedCheckpoint final : public Checkpoint {
 public:
  void add(StoredTensor tensor) {
    total_bytes_ += tensor.bytes;
    std::string name = tensor.name;
    tensors_.emplace(std::move(name), std::move(tensor));
  }

  const TensorInfo* find(const std::string& name) const override {
    const auto entry = tensors_.find(name);
    return entry == tensors_.end() ? nullptr : &entry->second;
  }

  uint64_t total_bytes() const override { return total_bytes_; }

  std::vector<SafetensorsFile> safetensors;  // keep the maps alive
  std::unique_ptr<GgufSet> gguf;

 protected:
  void read_rows(const TensorInfo& info, int64_t row, int64_t col, Tensor out) const override {
    const auto& tensor = static_cast<const StoredTensor&>(info);  // find() gives no other
    if (tensor.stored == nullptr || tensor.stored->decode == nullptr) {
      std::string readable;
      for (const StoredType& type : stored_types()) {
        if (type.decode != nullptr)
          readable += std::string(readable.empty() ? "" : ", ") + type.name;
      }
      throw Error(Code::kInvalidArgument, "cannot read tensor " + info.name + " of " +
                                              tensor.file->path() + ": its type is " + info.type +
                                              "; one of " + readable + " is needed");
    }
    const uint64_t row_bytes = info.bytes / static_cast<uint64_t>(info.rows());
    const uint64_t begin = tensor.offset + static_cast<uint64_t>(row) * row_bytes;
    for (int64_t i = 0; i < out.rows; ++i) {
      const Tensor values = out.row_range(i, 1);
      convert_row(*tensor.stored, tensor.file->data() + begin + i * row_bytes, col, values);
      require_finite(tensor, row + i, col, values);
    }
    // The values are in `out` now: without this the process would hold the checkpoint twice.
    tensor.file->release(begin, static_cast<uint64_t>(out.rows) * row_bytes);
  }

 private:
  // One NaN among the weights makes every logit NaN.
  static void require_finite(const StoredTensor& tensor, int64_t row, int64_t col, Tensor values) {
    const int64_t at = first_not_finite(values);
    if (at < 0) return;
    throw Error(Code::kInvalidArgument,
                "cannot load tensor " + tensor.name + " of " + tensor.file->path() +
                    ": its value at row " + std::to_string(row) + ", column " +
                    std::to_string(col + at) + " is infinite or not a number as " +
                    dtype_name(values.dtype) +
                    "; finite weights are needed: download the file again, or serve with another "
                    "--dtype if this one's range is too small");
  }

  std::unordered_map<std::string, StoredTensor> tensors_;
  uint64_t total_bytes_ = 0;
};

StoredTensor from_safetensors(const std::string& name, const SafetensorsTensor& tensor,
                              const MappedFile& file) {
  StoredTensor stored;
  stored.name = name;
  stored.type = tensor.dtype;
  stored.shape = tensor.shape.empty() ? std::vector<int64_t>{1} : tensor.shape;
  stored.bytes = tensor.bytes;
  stored.stored = find_stored_type(tensor.dtype);
  stored.file = &file;
  stored.offset = tensor.offset;
  return stored;
}

// ---- HF directory, one file ----

std::unique_ptr<Checkpoint> open_single(const std::string& directory) {
  auto checkpoint = std::make_unique<MappedCheckpoint>();
  const SafetensorsFile& file =
      checkpoint->safetensors.emplace_back((fs::path(directory) / "model.safetensors").string());
  for (const auto& [name, tensor] : file.tensors()) {
    checkpoint->add(from_safetensors(name, tensor, file.file()));
  }
  return checkpoint;
}

// ---- HF directory, shards and their index ----

std::unique_ptr<Checkpoint> open_sharded(const std::string& directory) {
  const std::string index_path = (fs::path(directory) / "model.safetensors.index.json").string();
  std::map<std::string, std::vector<std::string>> names_of;  // shard to its tensors
  for (auto& [name, file] : read_safetensors_index(index_path)) names_of[file].push_back(name);

  auto checkpoint = std::make_unique<MappedCheckpoint>();
  checkpoint->safetensors.reserve(names_of.size());  // tensors point into the files
  for (const auto& [file, names] : names_of) {
    const std::string path = (fs::path(directory) / file).string();
    if (!name_exists(path)) {
      throw Error(Code::kNotFound, "cannot open the checkpoint: " + path + " is missing; " +
                                       index_path + " needs it for " +
                                       std::to_string(names.size()) + " tensors: download it");
    }
    const SafetensorsFile& shard = checkpoint->safetensors.emplace_back(path);
    // Only what the index places in this shard, so that no tensor has two homes.
    for (const std::string& name : names) {
      const auto tensor = shard.tensors().find(name);
      if (tensor == shard.tensors().end()) {
        throw Error(Code::kInvalidArgument, "cannot open the checkpoint: " + path +
                                                " has no tensor " + name + ", which " + index_path +
                                                " places there");
      }
      checkpoint->add(from_safetensors(name, tensor->second, shard.file()));
    }
  }
  return checkpoint;
}

// ---- GGUF ----

std::unique_ptr<Checkpoint> open_gguf(const std::string& path) {
  auto checkpoint = std::make_unique<MappedCheckpoint>();
  checkpoint->gguf = std::make_unique<GgufSet>(path);
  for (const auto& [name, place] : checkpoint->gguf->tensors()) {
    StoredTensor stored;
    stored.name = name;
    stored.stored = find_ggml_type(place.tensor->type);
    stored.type = stored.stored->name;
    stored.shape = place.tensor->shape;
    stored.bytes = place.tensor->bytes;
    stored.file = &place.file->file();
    stored.offset = place.tensor->offset;
    checkpoint->add(std::move(stored));
  }
  return checkpoint;
}

// The formats: the first whose file is there. `file` "" means that the path itself is a file.
struct Format {
  const char* file;
  std::unique_ptr<Checkpoint> (*open)(const std::string& path);
};
constexpr Format kFormats[] = {
    {"model.safetensors", open_single},
    {"model.safetensors.index.json", open_sharded},
    {"", open_gguf},
};

// Says why a directory has no weights that we read.
[[noreturn]] void refuse_directory(const std::string& path) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() != ".bin" && entry.path().extension() != ".pt") continue;
    throw Error(Code::kFailedPrecondition,
                "cannot open the checkpoint " + path + ": it has pickle weights only (" +
                    entry.path().filename().string() +
                    "), which can run code and are never read; safetensors are needed: in Python, "
                    "AutoModelForCausalLM.from_pretrained(\"" +
                    path + "\").save_pretrained(DIR, safe_serialization=True)");
  }
  throw Error(Code::kNotFound, "cannot open the checkpoint " + path +
                                   ": the directory has neither model.safetensors nor "
                                   "model.safetensors.index.json; one of them is needed");
}

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  std::error_code error;
  const bool directory = fs::is_directory(path, error);
  if (!directory && !name_exists(path)) {
    throw Error(Code::kNotFound, "cannot open the checkpoint " + path +
                                     ": there is no such file or directory; an HF directory or a "
                                     ".gguf file is needed");
  }
  for (const Format& format : kFormats) {
    const bool wants_directory = format.file[0] != '\0';
    if (directory != wants_directory) continue;
    if (!directory || name_exists(path + "/" + format.file)) return format.open(path);
  }
  refuse_directory(path);
}

uint64_t bytes_touched(const TensorInfo& tensor, int64_t rows, int64_t cols) {
  if (tensor.rows() == 0 || tensor.cols() == 0) return 0;
  const uint64_t row_bytes = tensor.bytes / static_cast<uint64_t>(tensor.rows());
  if (tensor.shape.size() == 2) return static_cast<uint64_t>(rows) * row_bytes;
  return row_bytes / static_cast<uint64_t>(tensor.cols()) * static_cast<uint64_t>(cols);
}

void Checkpoint::read(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out) {
  CHECK(row >= 0 && out.rows >= 0 && row + out.rows <= tensor.rows(), tensor.name);
  CHECK(col >= 0 && out.cols >= 0 && col + out.cols <= tensor.cols(), tensor.name);
  if (out.rows == 0 || out.cols == 0) return;
  read_rows(tensor, row, col, out);
  bytes_read_ += bytes_touched(tensor, out.rows, out.cols);
}

}  // namespace trireme

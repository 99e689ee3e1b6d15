// SPDX-License-Identifier: Apache-2.0
#include "worker/model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <tuple>
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
  const MappedFile* file = nullptr;
  uint64_t offset = 0;
};

// Every format comes down to this: tensors at places in files.
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

  std::vector<const TensorInfo*> tensors() const override {
    std::vector<const TensorInfo*> all;
    all.reserve(tensors_.size());
    for (const auto& [name, tensor] : tensors_) all.push_back(&tensor);
    // An empty tensor may lie where another begins: the name decides.
    const auto place = [](const TensorInfo* info) {
      const StoredTensor& tensor = place_of(*info);
      return std::tie(tensor.file->path(), tensor.offset, tensor.name);
    };
    std::sort(all.begin(), all.end(),
              [&](const auto* a, const auto* b) { return place(a) < place(b); });
    return all;
  }

  const std::string& file_of(const TensorInfo& tensor) const override {
    return place_of(tensor).file->path();
  }

  uint64_t total_bytes() const override { return total_bytes_; }

  void will_fetch(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) const override {
    place_of(tensor).file->will_read(place_of(tensor).offset + offset, bytes);
  }

  std::vector<SafetensorsFile> safetensors;  // keep the files open
  std::unique_ptr<GgufSet> gguf;

 protected:
  void fetch_bytes(const TensorInfo& tensor, uint64_t offset,
                   std::span<std::byte> out) const override {
    place_of(tensor).file->read(place_of(tensor).offset + offset, out);
  }

 private:
  // find() and tensors() give no other.
  static const StoredTensor& place_of(const TensorInfo& info) {
    return static_cast<const StoredTensor&>(info);
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
    stored.type = find_ggml_type(place.tensor->type)->name;
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

int64_t TensorInfo::units() const {
  if (shape.size() == 2) return shape[0];
  const StoredType* const stored = find_stored_type(type);
  return shape.size() == 1 && stored != nullptr && stored->block_values == 1 ? cols() : 1;
}

uint64_t bytes_touched(const TensorInfo& tensor, int64_t rows, int64_t cols) {
  if (tensor.shape.size() == 2) return static_cast<uint64_t>(rows) * tensor.unit_bytes();
  return static_cast<uint64_t>(std::min(cols, tensor.units())) * tensor.unit_bytes();
}

void Checkpoint::require_readable(const TensorInfo& tensor) const {
  const StoredType* const type = find_stored_type(tensor.type);
  if (type != nullptr && type->decode != nullptr) return;
  std::string readable;
  for (const StoredType& other : stored_types()) {
    if (other.decode == nullptr) continue;
    readable += std::string(readable.empty() ? "" : ", ") + other.name;
  }
  throw Error(Code::kInvalidArgument, "cannot read tensor " + tensor.name + " of " +
                                          file_of(tensor) + ": its type is " + tensor.type +
                                          "; one of " + readable + " is needed");
}

void Checkpoint::fetch(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) {
  CHECK(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, tensor.name);
  if (out.empty()) return;
  fetch_bytes(tensor, offset, out);
  bytes_read_ += out.size();
}

void Checkpoint::fetch(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out,
                       Team& team) {
  CHECK(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, tensor.name);
  constexpr size_t kShareBytes = 512 << 10;
  const size_t shares = (out.size() + kShareBytes - 1) / kShareBytes;
  parallel_try(team, static_cast<int64_t>(shares), [&](int64_t share) {
    const size_t begin = static_cast<size_t>(share) * kShareBytes;
    const size_t size = std::min(kShareBytes, out.size() - begin);
    fetch_bytes(tensor, offset + begin, out.subspan(begin, size));
  });
  bytes_read_ += out.size();
}

void Checkpoint::convert(const TensorInfo& tensor, int64_t row, StoredRows stored, int64_t col,
                         Tensor out) const {
  require_readable(tensor);
  const StoredType& type = *find_stored_type(tensor.type);
  for (int64_t i = 0; i < out.rows; ++i) {
    const Tensor values = out.row_range(i, 1);
    convert_row(type, stored.data + i * stored.stride, col - stored.col, values);
    const int64_t at = first_not_finite(values);
    if (at < 0) continue;
    // One NaN among the weights makes every logit NaN.
    throw Error(Code::kInvalidArgument,
                "cannot load tensor " + tensor.name + " of " + file_of(tensor) +
                    ": its value at row " + std::to_string(row + i) + ", column " +
                    std::to_string(col + at) + " is infinite or not a number as " +
                    dtype_name(values.dtype) +
                    "; finite weights are needed: download the file again, or serve with another "
                    "--dtype if this one's range is too small");
  }
}

void Checkpoint::read(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out) {
  CHECK(row >= 0 && out.rows >= 0 && row + out.rows <= tensor.rows(), tensor.name);
  CHECK(col >= 0 && out.cols >= 0 && col + out.cols <= tensor.cols(), tensor.name);
  if (out.rows == 0 || out.cols == 0) return;
  require_readable(tensor);
  const bool values = tensor.shape.size() != 2 && tensor.units() > 1;  // a vector's, one by one
  std::vector<std::byte> bytes(bytes_touched(tensor, out.rows, out.cols));
  fetch(tensor, static_cast<uint64_t>(values ? col : row) * tensor.unit_bytes(), bytes);
  convert(tensor, row, {bytes.data(), static_cast<int64_t>(tensor.unit_bytes()), values ? col : 0},
          col, out);
}

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
#include "worker/facts.h"

#include <elf.h>
#include <link.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "topology/topology.h"
#include "worker/digest.h"
#include "worker/model/gguf_set.h"
#include "worker/model/safetensors.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

using Facts = google::protobuf::RepeatedPtrField<Fact>;

constexpr size_t kMaxValueBytes = 200;
constexpr size_t kDigits = 16;  // of a digest, for people: chance will not make two equal

// All that an HF directory may hold for us beside weights (coordinator/tokenizer, worker/model).
constexpr const char* kSmallFiles[] = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "qwen.tiktoken",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
};
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string bytes_text(uint64_t bytes) { return std::to_string(bytes) + " bytes"; }

std::string digest_of(const MappedFile& file, uint64_t bytes) {
  return "sha256 " + sha256({file.data(), bytes}).substr(0, kDigits) + " of " + bytes_text(bytes);
}

// The fact that make() states, or why it cannot.
template <typename Make>
void state(Facts& facts, const std::string& field, Make make) {
  try {
    add_fact(facts, field, make());
  } catch (const Error& error) {
    add_fact(facts, field, error.what());
  }
}

// Whole files: each is small beside the weights.
void state_file(const std::string& directory, const char* name, Facts& facts) {
  const std::string path = (fs::path(directory) / name).string();
  if (!name_exists(path)) return;
  state(facts, name, [&] {
    const MappedFile file(path);
    return digest_of(file, file.size());
  });
}

// As the format has it: eight bytes of length, then the header. The loader checks what it says.
uint64_t safetensors_header_bytes(const MappedFile& file) {
  uint64_t length = 0;
  if (file.size() >= sizeof(length)) std::memcpy(&length, file.data(), sizeof(length));
  return std::min(file.size(), sizeof(length) + std::min(length, file.size()));
}

void state_safetensors(const std::string& directory, const std::string& name, Facts& facts) {
  const std::string path = (fs::path(directory) / name).string();
  if (!name_exists(path)) return;
  state(facts, name + " size", [&] { return bytes_text(MappedFile(path).size()); });
  state(facts, name + " header", [&] {
    const MappedFile file(path);
    return digest_of(file, safetensors_header_bytes(file));
  });
}

void state_directory(const std::string& directory, Facts& facts) {
  for (const char* const name : kSmallFiles) state_file(directory, name, facts);
  if (name_exists((fs::path(directory) / kSingle).string())) {
    return state_safetensors(directory, kSingle, facts);
  }
  const std::string index = (fs::path(directory) / kIndex).string();
  if (!name_exists(index)) return;
  state_file(directory, kIndex, facts);
  std::set<std::string> shards;
  try {
    for (const auto& [tensor, file] : read_safetensors_index(index)) shards.insert(file);
  } catch (const Error& error) {
    add_fact(facts, "shards", error.what());
  }
  for (const std::string& shard : shards) state_safetensors(directory, shard, facts);
}

// Header: up to the first tensor; metadata, tokenizer and directory of tensors.
std::string gguf_header(const GgufFile& gguf) {
  uint64_t end = gguf.file().size();
  for (const auto& [name, tensor] : gguf.tensors()) end = std::min(end, tensor.offset);
  return digest_of(gguf.file(), end);
}

// Fields are named by number: ranks may know the file by different names.
void state_gguf(const std::string& path, Facts& facts) {
  state(facts, "GGUF size", [&] { return bytes_text(MappedFile(path).size()); });
  try {
    const GgufSet set(path);
    for (size_t i = 0; i < set.files().size(); ++i) {
      const GgufFile& file = set.files()[i];
      const std::string part = i == 0 ? "GGUF" : "GGUF part " + std::to_string(i + 1);
      if (i > 0) add_fact(facts, part + " size", bytes_text(file.file().size()));
      add_fact(facts, part + " header", gguf_header(file));
    }
  } catch (const Error& error) {
    add_fact(facts, "GGUF header", error.what());
  }
}

// The program's own notes: the loader lists it first.
int find_build_id(dl_phdr_info* info, size_t, void* found) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const auto* const begin = reinterpret_cast<const std::byte*>(info->dlpi_addr + segment.p_vaddr);
    const auto padded = [](uint64_t size) { return (size + 3) / 4 * 4; };
    for (uint64_t at = 0; at + sizeof(ElfW(Nhdr)) <= segment.p_memsz;) {
      ElfW(Nhdr) note;
      std::memcpy(&note, begin + at, sizeof note);
      const uint64_t name = at + sizeof note;
      const uint64_t value = name + padded(note.n_namesz);
      if (value + note.n_descsz > segment.p_memsz) break;
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
          std::memcmp(begin + name, "GNU", 4) == 0) {
        *static_cast<std::span<const std::byte>*>(found) = {begin + value, note.n_descsz};
        return 1;
      }
      at = value + padded(note.n_descsz);
    }
  }
  return 1;
}

}  // namespace

void add_fact(Facts& facts, const std::string& field, const std::string& value) {
  Fact& fact = *facts.Add();
  fact.set_field(printable(field));
  fact.set_value(printable(value.size() <= kMaxValueBytes
                               ? value
                               : value.substr(0, kMaxValueBytes) + "…, " + digest_text(value)));
}

std::string digest_text(const std::string& text) {
  return "sha256 " + sha256(std::as_bytes(std::span(text))).substr(0, kDigits);
}

std::string build_id() {
  std::span<const std::byte> id;
  dl_iterate_phdr(find_build_id, &id);
  std::string text;
  for (const std::byte byte : id) {
    text += "0123456789abcdef"[static_cast<uint8_t>(byte) >> 4];
    text += "0123456789abcdef"[static_cast<uint8_t>(byte) & 15];
  }
  return text.empty() ? "none" : text;
}

void state_model_files(const std::string& path, RankFacts& facts) {
  Facts& agree = *facts.mutable_must_agree();
  add_fact(*facts.mutable_may_differ(), "--model", path);
  std::error_code error;
  const bool directory = fs::is_directory(path, error);
  const char* const kind = directory ? "a directory" : name_exists(path) ? "a file" : "absent";
  add_fact(agree, "the model's path", kind);
  if (directory) {
    state_directory(path, agree);
  } else if (name_exists(path)) {
    state_gguf(path, agree);
  }
}

void state_machine(const DeviceInfo& device, RankFacts& facts) {
  Facts& differ = *facts.mutable_may_differ();
  utsname system{};
  if (uname(&system) == 0) add_fact(differ, "kernel", system.release);
  std::string driver;
  if (std::ifstream("/sys/module/nvidia/version") >> driver) {
    add_fact(differ, "NVIDIA driver", driver);
  }
  add_fact(differ, "device", device.name());
  if (!device.isa().empty()) add_fact(differ, "ISA", device.isa());
  add_fact(differ, "cores", std::to_string(device.cpus_size()));
  // All of the node's: what is free differs from moment to moment.
  const auto pages = static_cast<uint64_t>(std::max(sysconf(_SC_PHYS_PAGES), 0L));
  add_fact(differ, "memory", format_bytes(pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE))));
}

}  // namespace trireme

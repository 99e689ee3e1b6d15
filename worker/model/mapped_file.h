// SPDX-License-Identifier: Apache-2.0
// A file opened read-only for the life of the object: mapped, for headers; and read piece by piece,
// for what is large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace trireme {

class MappedFile {
 public:
  MappedFile() = default;
  // Throws kNotFound (absent, a directory) or kFailedPrecondition (unreadable), naming the path.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Copies [offset, offset + out.size()) from the file, not through the map. Throws
  // kFailedPrecondition where the file became shorter, or its storage failed.
  void read(uint64_t offset, std::span<std::byte> out) const;
  // A hint: this part will be read soon, and nothing beside it.
  void will_read(uint64_t offset, uint64_t bytes) const;

 private:
  std::string path_;
  int file_ = -1;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

// Whether something has this name, be it unreadable or a link that leads nowhere: opening it then
// says so, where taking it for absent would hide it.
bool name_exists(const std::string& path);

}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// A file mapped read-only for the life of the object.
#pragma once

#include <cstddef>
#include <cstdint>
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

  // Gives the memory of the pages inside [offset, offset + bytes) back to the system; reading them
  // again is legal and reads the file again.
  void release(uint64_t offset, uint64_t bytes) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

// Whether something has this name, be it unreadable or a link that leads nowhere: opening it then
// says so, where taking it for absent would hide it.
bool name_exists(const std::string& path);

}  // namespace trireme

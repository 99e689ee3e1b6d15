// SPDX-License-Identifier: Apache-2.0
#include "worker/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "kernels/base/bus_error.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

[[noreturn]] void fail(const std::string& path, int error) {
  const bool absent = error == ENOENT || error == ENOTDIR;
  throw Error(absent ? Code::kNotFound : Code::kFailedPrecondition,
              "cannot read " + path + ": " + std::generic_category().message(error) +
                  "; a readable file is needed");
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  explain_bus_errors();
  // O_NONBLOCK: opening a named pipe must not wait for its writer.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail(path, errno);
  struct stat status = {};
  const int error = fstat(file, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    void* map = mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    const int map_error = errno;
    if (map == MAP_FAILED) {
      close(file);
      fail(path, map_error);
    }
    file_ = file;
    data_ = static_cast<const std::byte*>(map);
    size_ = status.st_size;
    // A hint only: no read-ahead beyond what is asked for, which may be another node's to read.
    (void)posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    return;
  }
  close(file);
  if (error != 0) fail(path, error);
  if (!S_ISREG(status.st_mode)) {
    throw Error(Code::kNotFound, "cannot read " + path + ": it is " +
                                     (S_ISDIR(status.st_mode) ? "a directory" : "no regular file") +
                                     "; a file is needed");
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
  if (file_ >= 0) close(file_);
}

void MappedFile::read(uint64_t offset, std::span<std::byte> out) const {
  const uint64_t end = offset + out.size();
  while (!out.empty()) {
    const ssize_t count = pread(file_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, errno);
    if (count == 0) {
      throw Error(
          Code::kFailedPrecondition,
          "cannot read " + path_ + ": it became shorter while it was read: it ends at byte " +
              std::to_string(offset) + ", needed are " + std::to_string(end) + "; copy it again");
    }
    offset += static_cast<uint64_t>(count);
    out = out.subspan(static_cast<size_t>(count));
  }
}

void MappedFile::will_read(uint64_t offset, uint64_t bytes) const {
  (void)posix_fadvise(file_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                      POSIX_FADV_WILLNEED);
}

bool name_exists(const std::string& path) {
  struct stat status = {};
  return lstat(path.c_str(), &status) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

}  // namespace trireme

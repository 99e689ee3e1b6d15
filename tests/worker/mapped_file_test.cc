// SPDX-License-Identifier: Apache-2.0
#include "worker/model/mapped_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/worker/model_files.h"

namespace trireme {
namespace {

TEST(MappedFile, SaysWhenTheFileBecameShorter) {
  EXPECT_EXIT(
      {
        const TemporaryFolder folder;
        const MappedFile file(folder.write("weights", std::string(1 << 16, 'x')));
        if (truncate(file.path().c_str(), 10) != 0) _exit(3);
        const volatile std::byte* last = file.data() + file.size() - 1;
        _exit(*last == std::byte{'x'} ? 4 : 5);
      },
      testing::ExitedWithCode(1),
      "^trireme: cannot read /.*/weights: it became shorter.*copy it again");
}

TEST(MappedFile, ANameExistsWhereverItLeads) {
  const TemporaryFolder folder;
  const std::string loop = folder.path() + "/loop";
  std::filesystem::create_symlink(loop, loop);
  EXPECT_TRUE(name_exists(loop));
  EXPECT_TRUE(name_exists(folder.write("file", "")));
  EXPECT_FALSE(name_exists(folder.path() + "/absent"));
  expect_error(Code::kFailedPrecondition, "Too many levels of symbolic links",
               [&] { const MappedFile file(loop); });
}

}  // namespace
}  // namespace trireme

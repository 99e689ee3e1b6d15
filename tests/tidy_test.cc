// SPDX-License-Identifier: Apache-2.0
// The rules of the tree that a compiler does not see: folder order, sizes, banned words, what lies
// where.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileLines = 500;
constexpr size_t kMaxHeaderLines = 250;
constexpr size_t kMaxFunctionLines = 70;
constexpr size_t kMaxReadmeLines = 30;
constexpr size_t kMaxColumns = 120;

const fs::path kRoot = TRIREME_SOURCE_DIR;
const std::vector<std::string> kFolders = {"proto",       "kernels", "topology", "worker",
                                           "coordinator", "launch",  "tests"};

struct Source {
  std::string path;  // from the root
  std::vector<std::string> lines;
  bool header() const { return path.ends_with(".h") || path.ends_with(".cuh"); }
};

std::vector<Source> read_sources() {
  std::vector<Source> sources;
  for (const std::string& folder : kFolders) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".cc" && extension != ".h" && extension != ".cu" && extension != ".cuh") {
        continue;
      }
      Source source{fs::relative(entry.path(), kRoot), {}};
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) source.lines.push_back(line);
      sources.push_back(std::move(source));
    }
  }
  return sources;
}

const std::vector<Source>& sources() {
  static const std::vector<Source> all = read_sources();
  return all;
}

std::string folder_of(const std::string& path) { return path.substr(0, path.find('/')); }

// proto and kernels know nothing of each other; everything else may include what is to its left.
bool may_include(const std::string& from, const std::string& to) {
  const auto place = [](const std::string& folder) {
    return std::find(kFolders.begin(), kFolders.end(), folder) - kFolders.begin();
  };
  if (from == to) return true;
  if (from == "kernels" || from == "proto") return false;
  return place(to) < place(from);
}

TEST(Tidy, IncludesGoLeft) {
  const std::regex include("^#include \"(proto|kernels|topology|worker|coordinator|launch|tests)/");
  for (const Source& source : sources()) {
    for (const std::string& line : source.lines) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      EXPECT_TRUE(may_include(folder_of(source.path), match[1]))
          << source.path << " includes to its right: " << line;
    }
  }
}

TEST(Tidy, CoordinatorKnowsOnlyTheKernelsBase) {
  for (const Source& source : sources()) {
    if (folder_of(source.path) != "coordinator") continue;
    for (const std::string& line : source.lines) {
      EXPECT_FALSE(line.starts_with("#include \"kernels/") &&
                   !line.starts_with("#include \"kernels/base/"))
          << source.path << ": " << line;
    }
  }
}

// Vendor headers have a home each.
TEST(Tidy, VendorHeadersStayHome) {
  const std::vector<std::pair<std::regex, std::vector<std::string>>> homes = {
      {std::regex("#include <(cuda|cublas|cudnn|nccl)"),
       {"kernels/cuda/", "worker/comm/nccl", "tests/gpu/", "tests/support/cuda_emulation/",
        "tests/worker/nccl/"}},
      {std::regex("#include <mpi\\.h>"),
       {"worker/comm/mpi", "worker/measure.cc", "launch/main.cc", "tests/worker/mpi/"}},
      {std::regex("#include <grpcpp/"), {"coordinator/", "launch/", "tests/"}},
      {std::regex("#include <openssl/"),
       {"worker/comm/", "worker/digest", "coordinator/auth", "tests/worker/"}},
      {std::regex("#include <sentencepiece"), {"coordinator/tokenizer/sentencepiece"}},
      {std::regex("#include <immintrin"), {"kernels/cpu/", "kernels/dtype", "tests/"}},
      {std::regex("#include .hwy/"), {"kernels/cpu/"}},
      {std::regex("#include <pcre2"), {"coordinator/tokenizer/"}},
      {std::regex("#include <(expat|yaml)\\.h>"), {"topology/xml.cc", "topology/yaml.cc"}},
  };
  for (const Source& source : sources()) {
    if (source.path == "tests/tidy_test.cc") continue;
    for (const std::string& line : source.lines) {
      for (const auto& [pattern, allowed] : homes) {
        if (!std::regex_search(line, pattern)) continue;
        EXPECT_TRUE(
            std::any_of(allowed.begin(), allowed.end(),
                        [&](const std::string& home) { return source.path.starts_with(home); }))
            << source.path << ": " << line;
      }
    }
  }
}

TEST(Tidy, SizesAreBounded) {
  for (const Source& source : sources()) {
    const size_t limit = source.header() ? kMaxHeaderLines : kMaxFileLines;
    EXPECT_LE(source.lines.size(), limit) << source.path;
    for (size_t index = 0; index < source.lines.size(); ++index) {
      EXPECT_LE(source.lines[index].size(), kMaxColumns) << source.path << ":" << index + 1;
    }
  }
}

// A body opens on a line that ends in ") {" (or with qualifiers or an initialiser list before the
// brace) and ends at the next closing brace in the column where its signature began: clang-format's
// layout makes that exact. The signature begins after the line that ended what stood before it.
TEST(Tidy, FunctionsAreShort) {
  const auto parentheses = [](const std::string& line) {
    return std::count(line.begin(), line.end(), '(') - std::count(line.begin(), line.end(), ')');
  };
  const std::regex opening("\\) (const |noexcept |override |final )*\\{$");
  const std::regex before("^$|[;{}]$|(public|private|protected|default|case .*):$|^ *//|^ *#");
  const std::regex lambda("\\[[&=a-z_, ]*\\]\\(");
  const std::regex control(
      "^ *(\\} )?(if|for|while|switch|else|do|catch|namespace|struct|class)\\b");
  for (const Source& source : sources()) {
    for (size_t open = 0; open < source.lines.size(); ++open) {
      if (!std::regex_search(source.lines[open], opening)) continue;
      size_t begin = open;
      auto unclosed = parentheses(source.lines[open]);
      while (begin > 0 && !std::regex_search(source.lines[begin], lambda) &&
             (unclosed < 0 || !std::regex_search(source.lines[begin - 1], before))) {
        unclosed += parentheses(source.lines[--begin]);
      }
      if (std::regex_search(source.lines[begin], control)) continue;
      const size_t indent = source.lines[begin].find_first_not_of(' ');
      const std::string closing = std::string(indent, ' ') + "}";
      const bool is_lambda = std::regex_search(source.lines[begin], lambda);
      size_t end = open + 1;
      // In a table of rows a lambda closes one column further in.
      const auto closes = [&](const std::string& line) {
        return line.starts_with(closing) || (is_lambda && line.starts_with(" " + closing));
      };
      while (end < source.lines.size() && !closes(source.lines[end])) ++end;
      EXPECT_LE(end - begin + 1, kMaxFunctionLines)
          << source.path << ":" << begin + 1 << ": " << source.lines[begin];
    }
  }
}

TEST(Tidy, BannedWords) {
  const std::regex todo("\\b(TODO|FIXME|XXX|HACK)\\b");
  const std::regex environment("\\bgetenv\\b");
  const std::regex conditional("^ *# *if(def|ndef)?\\b");
  for (const Source& source : sources()) {
    if (source.path == "tests/tidy_test.cc") continue;
    for (size_t index = 0; index < source.lines.size(); ++index) {
      const std::string where = source.path + ":" + std::to_string(index + 1);
      const std::string& line = source.lines[index];
      EXPECT_FALSE(std::regex_search(line, todo)) << where;
      if (source.path != "launch/launch_info.cc" && source.path != "launch/options.cc" &&
          source.path != "worker/comm/nccl.cc" &&  // NCCL's own
          !source.path.starts_with("tests/")) {
        EXPECT_FALSE(std::regex_search(line, environment)) << where << ": flags only";
      }
      const bool may_branch = source.path.starts_with("kernels/cpu/") ||
                              source.path.starts_with("kernels/cuda/") ||
                              source.path.starts_with("launch/");
      EXPECT_FALSE(!may_branch && std::regex_search(line, conditional))
          << where << ": a missing thing is a file that CMake picks";
    }
  }
}

TEST(Tidy, EverySourceIsBuiltAndMarked) {
  std::map<std::string, std::string> lists;  // CMakeLists.txt of each folder, together
  for (const std::string& folder : kFolders) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      if (entry.path().filename() != "CMakeLists.txt") continue;
      std::ifstream file(entry.path());
      std::ostringstream text;
      text << file.rdbuf();
      lists[folder] += text.str();
    }
  }
  for (const Source& source : sources()) {
    EXPECT_TRUE(!source.lines.empty() &&
                source.lines[0] == "// SPDX-License-Identifier: Apache-2.0")
        << source.path;
    // *-inl.h are read once per instruction set, by their own guard.
    if (source.path.ends_with("-inl.h")) continue;
    if (source.header()) {
      EXPECT_NE(std::find(source.lines.begin(), source.lines.end(), "#pragma once"),
                source.lines.end())
          << source.path;
    } else if (folder_of(source.path) != "tests") {
      const std::string name = fs::path(source.path).filename();
      EXPECT_NE(lists[folder_of(source.path)].find(name), std::string::npos)
          << source.path << " is in no CMakeLists.txt";
    }
  }
}

TEST(Tidy, TopLevelHoldsNothingElse) {
  const std::set<std::string> allowed = {"CMakeLists.txt", "CMakePresets.json",
                                         "LICENSE",        "README.md",
                                         ".clang-format",  ".clang-tidy",
                                         ".gitignore",     ".ci",
                                         ".git",           "proto",
                                         "coordinator",    "worker",
                                         "kernels",        "topology",
                                         "launch",         "tests",
                                         ".models",        ".venv"};
  for (const auto& entry : fs::directory_iterator(kRoot)) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(allowed.contains(name) || name.starts_with("build")) << name;
  }
}

TEST(Tidy, EveryFolderHasAShortReadme) {
  for (const std::string& folder : kFolders) {
    std::ifstream file(kRoot / folder / "README.md");
    ASSERT_TRUE(file) << folder << "/README.md";
    size_t lines = 0;
    for (std::string line; std::getline(file, line);) ++lines;
    EXPECT_LE(lines, kMaxReadmeLines) << folder << "/README.md";
  }
}

TEST(Tidy, ClangFormatAgrees) {
  if (std::system("clang-format-14 --version >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "clang-format-14 is not installed";
  }
  std::string command = "cd " + kRoot.string() + " && clang-format-14 --dry-run --Werror";
  for (const Source& source : sources()) command += " " + source.path;
  EXPECT_EQ(std::system(command.c_str()), 0) << "run: clang-format-14 -i on the files above";
}

}  // namespace
}  // namespace trireme

// SPDX-License-Identifier: Apache-2.0
// Loads the models that come over standard input (a byte for the kind, eight of length, then the
// model) as serving loads them, tokenises a little, and answers each with one byte. What it does
// not survive is for its parent to see.
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/sentencepiece_process.h"

namespace trireme::fuzz {
namespace {

bool read_exactly(void* to, size_t size) {
  for (size_t got = 0; got < size;) {
    const ssize_t count = read(STDIN_FILENO, static_cast<char*>(to) + got, size - got);
    if (count <= 0) return false;
    got += static_cast<size_t>(count);
  }
  return true;
}

void use(const Tokenizer& tokenizer) {
  std::string long_text;
  for (int i = 0; i < 200; ++i) long_text += "a long text, ";
  for (const std::string& text :
       {std::string("Hello, 12 worlds\n"), std::string(),
        std::string("\xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x9A\x80\xEF\xB7\xBA"), long_text}) {
    (void)accepts([&] {
      const std::vector<int32_t> ids = tokenizer.encode(text);
      for (const int32_t id : ids) CHECK(id >= 0 && id < tokenizer.size(), "an id");
      CHECK(!find_broken_utf8(tokenizer.decode(ids)).has_value(), "a decoded text is UTF-8");
    });
  }
}

std::unique_ptr<Tokenizer> load(ModelKind kind, std::string_view bytes) {
  static InputFolder folder({"tokenizer_config.json", "tokenizer.model"});
  static InputFile gguf;
  if (kind == ModelKind::kPieces) return make_sentencepiece("tokenizer.model", bytes);
  if (kind == ModelKind::kGguf) {
    gguf.set(bytes);
    return load_tokenizer(gguf.path(), "llama");
  }
  const auto [config, model] = cut(bytes);
  folder.set(0, config);
  folder.set(1, model);
  return load_sentencepiece(folder.path() + "/tokenizer.model", folder.path(), "llama");
}

int serve() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char kind = 0;
  uint64_t size = 0;
  std::string bytes;
  while (read_exactly(&kind, 1) && read_exactly(&size, sizeof size)) {
    bytes.resize(size);
    if (!read_exactly(bytes.data(), size)) break;
    std::unique_ptr<Tokenizer> tokenizer;
    if (accepts([&] { tokenizer = load(ModelKind{kind}, bytes); })) use(*tokenizer);
    if (send(STDIN_FILENO, "k", 1, MSG_NOSIGNAL) != 1) break;
  }
  return 0;
}

}  // namespace
}  // namespace trireme::fuzz

int main() { return trireme::fuzz::serve(); }

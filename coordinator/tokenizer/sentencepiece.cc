// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/sentencepiece.h"

#include <unordered_map>
#include <utility>

#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/sentencepiece_check.h"
#include "coordinator/tokenizer/sentencepiece_loader.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

constexpr uint64_t kFileBytesMax = 64ull << 20;  // ChatGLM3's has 1 MiB, the largest known 5 MiB
constexpr std::string_view kUnknownText = " \xE2\x81\x87 ";  // what sentencepiece decodes <unk> to

// In the order of their ids, from the number of pieces on.
constexpr const char* kChatGlmTokens[] = {"[MASK]",   "[gMASK]",       "[sMASK]",
                                          "sop",      "eop",           "<|system|>",
                                          "<|user|>", "<|assistant|>", "<|observation|>"};

constexpr int32_t kBehind = -1;  // an added token's id: the next behind all pieces

void append_bytes(void* to, const char* bytes, size_t size) {
  static_cast<std::string*>(to)->append(bytes, size);
}

void append_ids(void* to, const int32_t* ids, size_t count) {
  auto* all = static_cast<std::vector<int32_t>*>(to);
  all->insert(all->end(), ids, ids + count);
}

struct CloseModel {
  void operator()(void* model) const { sentencepiece_module().close(model); }
};
using Model = std::unique_ptr<void, CloseModel>;

Model open_model(const std::string& file, std::string_view bytes) {
  if (bytes.empty() || bytes.size() > kFileBytesMax) {
    throw Error(Code::kInvalidArgument, "cannot load " + file + ": its sentencepiece model has " +
                                            std::to_string(bytes.size()) + " bytes, 1 to " +
                                            std::to_string(kFileBytesMax) +
                                            " are needed; copy the checkpoint's file again");
  }
  check_sentencepiece_model(bytes, file);
  std::string reason;
  void* model = sentencepiece_module().open(bytes.data(), bytes.size(), &reason, append_bytes);
  if (model == nullptr) {
    throw Error(Code::kInvalidArgument,
                "cannot load " + file + ": not a sound sentencepiece model (" + reason +
                    "); copy it again, or add a tokenizer.json where it is a tiktoken list");
  }
  return Model(model);
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& file, std::string_view bytes,
                         const std::vector<AddedToken>& added)
      : file_(file), model_(open_model(file, bytes)) {
    const std::vector<std::string> texts = read_pieces();
    const size_t limit = 2 * (texts.size() + added.size());
    for (AddedToken token : added) {
      if (token.id == kBehind) token.id = size();
      const auto id = static_cast<size_t>(token.id);
      if (token.text.empty() || id >= limit || (id < texts.size() && texts[id] != token.text)) {
        throw Error(Code::kInvalidArgument,
                    "cannot load " + file + ": the added token \"" + token.text + "\" has the id " +
                        std::to_string(id) + ", where " +
                        (id < texts.size() ? "the piece \"" + texts[id] + "\" is"
                                           : std::to_string(texts.size()) + " pieces end") +
                        "; tokenizer_config.json and added_tokens.json are of another model");
      }
      add_token(token, id < texts.size());
    }
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    require_utf8(text);
    std::vector<int32_t> ids;
    const auto ordinary = [&](std::string_view part) {
      if (sentencepiece_module().encode(model_.get(), part.data(), part.size(), &ids, append_ids)) {
        return;
      }
      throw Error(Code::kInternal, "cannot tokenize a text of " + std::to_string(part.size()) +
                                       " bytes: sentencepiece failed; send a shorter one");
    };
    added_.split(text, ordinary, [&](int32_t id) { ids.push_back(id); });
    return ids;
  }

  std::string bytes_of(int32_t id, bool at_start) const override {
    if (id < 0 || id >= size()) return "";
    const Piece& piece = pieces_[id];
    const bool drop = at_start && drops_first_space_ && piece.kind == Kind::kSpaceFirst;
    return drop ? piece.bytes.substr(1) : piece.bytes;
  }

  bool is_special(int32_t id) const override {
    return id >= 0 && id < size() && pieces_[id].kind == Kind::kSpecial;
  }

  std::optional<int32_t> special(std::string_view text) const override {
    const auto found = special_ids_.find(std::string(text));
    return found == special_ids_.end() ? std::nullopt : std::optional(found->second);
  }

  int32_t size() const override { return static_cast<int32_t>(pieces_.size()); }

 private:
  enum class Kind : uint8_t { kText, kSpaceFirst, kSpecial };
  struct Piece {
    Kind kind;
    std::string bytes;
  };

  void add_token(const AddedToken& token, bool is_piece) {
    if (!is_piece && static_cast<size_t>(token.id) >= pieces_.size()) {
      pieces_.resize(static_cast<size_t>(token.id) + 1, {Kind::kText, ""});
    }
    Piece& piece = pieces_[token.id];
    // The unknown piece is special to transformers; a text still needs it.
    if (piece.kind == Kind::kSpecial || token.id == unknown_id_) return;
    if (is_piece && token.special) {
      throw Error(Code::kUnimplemented,
                  "cannot use " + file_ + ": its piece \"" + token.text +
                      "\" is a special token beside it, and a text could hold it all the same; "
                      "copy the checkpoint's tokenizer.json beside it");
    }
    if (token.special) {
      piece = {Kind::kSpecial, ""};
      special_ids_.emplace(token.text, token.id);
    } else {
      if (!is_piece) piece = {Kind::kText, token.text};
      added_.add(token.text, token.id);
    }
  }

  // Their texts.
  std::vector<std::string> read_pieces() {
    std::vector<std::string> texts;
    const TriremeSentencePiece& module = sentencepiece_module();
    const int32_t count = module.size(model_.get());
    int32_t space_piece = -1;
    for (int32_t id = 0; id < count; ++id) {
      std::string text;
      const TriremePieceKind kind = module.piece(model_.get(), id, &text, append_bytes);
      pieces_.push_back(make_piece(kind, text));
      if (kind == kPieceControl) special_ids_.emplace(text, id);
      if (kind == kPieceUnknown) unknown_id_ = id;
      if (pieces_.back().kind == Kind::kSpaceFirst) space_piece = id;
      texts.push_back(std::move(text));
    }
    if (space_piece < 0) return texts;
    // The normaliser's settings are not in sentencepiece's interface: ask its decoder.
    const size_t one = decoded_size({space_piece});
    const size_t two = decoded_size({space_piece, space_piece});
    const size_t whole = pieces_[space_piece].bytes.size();
    drops_first_space_ = one < whole;
    if (two != one + whole) {
      throw Error(Code::kUnimplemented,
                  "cannot use " + file_ +
                      ": its normaliser removes extra spaces, so that the text "
                      "of an answer could not be streamed; use a model whose spaces are kept");
    }
    return texts;
  }

  static Piece make_piece(TriremePieceKind kind, const std::string& text) {
    if (kind == kPieceControl) return {Kind::kSpecial, ""};
    if (kind == kPieceUnknown) return {Kind::kText, std::string(kUnknownText)};
    if (kind == kPieceByte) return {Kind::kText, text};
    std::string bytes;
    for (size_t at = 0; at < text.size();) {
      const bool space = text.compare(at, kMetaspace.size(), kMetaspace) == 0;
      bytes += space ? ' ' : text[at];
      at += space ? kMetaspace.size() : 1;
    }
    return {text.starts_with(kMetaspace) ? Kind::kSpaceFirst : Kind::kText, bytes};
  }

  size_t decoded_size(const std::vector<int32_t>& ids) const {
    std::string text;
    const bool done =
        sentencepiece_module().decode(model_.get(), ids.data(), ids.size(), &text, append_bytes);
    CHECK(done, "sentencepiece decodes its own ids");
    return text.size();
  }

  std::string file_;
  Model model_;
  AddedTokens added_;
  int32_t unknown_id_ = -1;
  std::vector<Piece> pieces_;
  std::unordered_map<std::string, int32_t> special_ids_;
  bool drops_first_space_ = false;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& file, const std::string& folder,
                                              const std::string& family) {
  std::vector<AddedToken> added;
  if (family == "chatglm") {
    for (const char* text : kChatGlmTokens) added.push_back({kBehind, text, true, false});
  } else {
    added = read_tokenizer_config(folder).added;
  }
  const MappedFile bytes(file);
  return std::make_unique<SentencePieceTokenizer>(
      file, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), added);
}

std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& file, std::string_view bytes) {
  return std::make_unique<SentencePieceTokenizer>(file, bytes, std::vector<AddedToken>());
}

}  // namespace trireme

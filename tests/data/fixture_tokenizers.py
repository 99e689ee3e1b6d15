# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers for make_fixtures.py: those of tiny-chatglm3, -llama3, -qwen2 and -glm, cut to
VOCAB ids. Each function returns one that writes its files into a folder and gives the ids of TEXTS.
"""
import base64
import json
import pathlib
import shutil

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
VOCAB = 320
TEXTS = ["你好", "The quick brown fox saw 3 lazy dogs:\n  def f(x): return x", "Hello, world!"]


def write_json(path, data):
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def cut_byte_bpe(source, front, folder):
    """tokenizer.json with fewer merges; the added tokens are the last ids."""
    data = json.loads((HERE / source / "tokenizer.json").read_text())
    model, added = data["model"], data["added_tokens"]
    kept = VOCAB - len(added)
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < kept}
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
    for index, token in enumerate(added):
        token["id"] = kept + index
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=0))
    shutil.copy(HERE / source / "tokenizer_config.json", folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(front + text, add_special_tokens=False).ids for text in TEXTS]


def cut_tiktoken(source, front, folder):
    """The same as a list of `base64 rank` lines, with the added tokens in tokenizer_config.json."""
    ids = cut_byte_bpe(source, front, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of.update({chr(256 + index): byte for index, byte in enumerate(others)})
    lines = []
    for token, rank in sorted(data["model"]["vocab"].items(), key=lambda item: item[1]):
        raw = bytes(byte_of[character] for character in token)
        lines.append(f"{base64.b64encode(raw).decode()} {rank}\n")
    (folder / "tokenizer.model").write_text("".join(lines))
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config = {
        "tokenizer_class": "ChatGLM4Tokenizer",
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in keys} for token in data["added_tokens"]
        },
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "remove_space": False,
        "do_lower_case": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    return ids


def cut_sentencepiece(pieces, config, front, folder):
    """tokenizer.model with some pieces of tiny-chatglm3's: the bytes, 36 letters and what is made
    of them; `front` stands before a text."""
    model = ModelProto.FromString((HERE / "tiny-chatglm3" / "tokenizer.model").read_bytes())
    always, normal = model.pieces[:259], model.pieces[259:]
    letters = [piece for piece in normal if len(piece.piece) == 1][:36]
    known = {piece.piece for piece in letters}
    merged = [piece for piece in normal if len(piece.piece) > 1 and known.issuperset(piece.piece)]
    kept = [*always, *merged[: pieces - 259 - 36], *letters]
    assert len(kept) == pieces
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.vocab_size = pieces
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    write_json(folder / "tokenizer_config.json", config)
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [front + tokenizer.encode(text) for text in TEXTS]


def chatglm_tokenizer(version):
    # Nine tokens follow the pieces: [MASK] [gMASK] [sMASK] sop …
    pieces = VOCAB - 9
    config = {
        "name_or_path": f"THUDM/{version}",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    return lambda folder: cut_sentencepiece(pieces, config, [pieces + 1, pieces + 3], folder)


def llama_tokenizer(name):
    config = {
        "tokenizer_class": name,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    return lambda folder: cut_sentencepiece(VOCAB, config, [1], folder)


def byte_bpe(source, front=""):
    return lambda folder: cut_byte_bpe(source, front, folder)


def tiktoken_file(source, front=""):
    return lambda folder: cut_tiktoken(source, front, folder)

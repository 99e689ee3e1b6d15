# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/pre_tokenizer_cases.json: run once, `pip install tokenizers`; the result is committed.

Ids that the tokenizers library gives under the pre-tokenizers that GGUF files name, in a vocabulary where
every byte and every pair of bytes is a token: wherever a text is cut otherwise, the ids differ.
"""
import json
import pathlib
from unicodedata import category

from make_tokenizer_cases import make_texts
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).parent
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def words(digits):
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# As the tokenizer.json of a model of each kind has them.
KINDS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [words(r"\p{N}{1,3}")],
    "qwen2": [words(r"\p{N}")],
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", None],
}


def stage(pattern):
    if pattern is None:
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def make_tokenizer(patterns, nfc):
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) if b in kept else chr(256 + b - sum(k < b for k in kept)) for b in range(256)]
    pairs = [(a, b) for a in alphabet for b in alphabet]
    tokens = [*alphabet, *(a + b for a, b in pairs)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*map(stage, patterns), byte_level])
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def main():
    tokenizers = {name: make_tokenizer(patterns, name == "qwen2") for name, patterns in KINDS.items()}
    # Characters that are not in Unicode 14, as Python 3.11 has it, are letters to one library and not to another.
    texts = [text for text in make_texts(160, 11) if all(category(c) != "Cn" for c in text)]
    cases = [{"text": text, "ids": {name: one.encode(text).ids for name, one in tokenizers.items()}}
             for text in texts]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / "pre_tokenizer_cases.json").write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tokenizer_cases.json: run once, `pip install tokenizers sentencepiece`; the result is committed.

Texts of many kinds and the ids that the reference libraries give for them, for each tokenizer of this
folder. With folders as arguments it prints one JSON line per text instead, for a bulk comparison:
    make_tokenizer_cases.py --lines 4000 DIR
"""
import argparse
import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
NAMES = ("tiny-chatglm3", "tiny-glm", "tiny-llama3", "tiny-qwen2")

WORDS = (
    "the model Distributed inference splits one over several workers naïve café résumé I've we'll THEY'RE "
    "you'd don'T 'll 'S it's snake_case CamelCase x86_64 0xFF 3.14159 1,000,000 2024-05-17 http://a.b/c?d=e "
    "def f(x): return x**2 #include <vector> std::string&& {\"a\": [1, 2]} <|user|> <|im_start|> [gMASK] "
    "</s> <s> <unk> <0x41> ▁ ... --- !? ¿Qué? Straße Ångström Ωμέγα привет мир שלום مرحبا नमस्ते ไทย 한국어 "
    "日本語 ひらがな カタカナ 你好 世界 分布式推理 把一个模型拆分到多台机器上运行 。，！？「」 ½ ² ③ Ⅷ ٣٤ ㊙ ﬁ ſ 'ſ"
).split()
PIECES = (
    " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u2003", "\u3000", "\u200b",
    "\u180e", "\ufeff", "\u2028", "\x00", "\x01", "\x1b", "\x7f", "e\u0301", "A\u030a", "\u0344", "\u1100\u1161\u11a8",
    "\u0958", "\u212b", "\u2126", "q\u0323\u0307", "q\u0307\u0323", "🚀", "👨‍👩‍👧", "🏳️‍🌈", "👋🏽", "🇫🇷", "\U0001d518",
    "\U00020000", "\U000e0041", "1", "12", "123", "1234567890", ".", ",", "'", "\"", "_", "ﷺ", "\u0e33",
)


def make_texts(count, seed):
    rng = random.Random(seed)
    planes = ((0, 0x7F), (0x80, 0x24F), (0x250, 0x2FFF), (0x3000, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFD),
              (0x10000, 0x1FFFF), (0x20000, 0x10FFFF))

    def any_character():
        return chr(rng.randint(*rng.choice(planes)))

    makers = (
        lambda: rng.choice(WORDS) + rng.choice((" ", " ", " ", "", "\n")),
        lambda: rng.choice(PIECES),
        lambda: rng.choice((" ", "\n", "\t", "a", "1", "!", "好", "\u0301", "\xa0")) * rng.randint(1, 9),
        any_character,
    )
    texts = ["", " ", "\n", "Hello, world!\n  def f(x):", "1234567890", " \t\n\n  x", "a" * 100]
    while len(texts) < count:
        weights = rng.choice(((8, 2, 1, 0), (3, 3, 2, 1), (1, 4, 4, 0), (0, 1, 1, 6)))
        texts.append("".join(rng.choices(makers, weights)[0]() for _ in range(rng.randint(1, 24))))
    return texts


def make_encoder(folder):
    """Ids without bos, special tokens in the text left as text."""
    if (folder / "tokenizer.json").exists():
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return processor.encode


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=180)
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    options = parser.parse_args()
    texts = make_texts(options.lines, 3)
    if options.folder:
        encode = make_encoder(options.folder)
        for text in texts:
            print(json.dumps({"text": text, "ids": encode(text)}))
        return
    encoders = {name: make_encoder(HERE / name) for name in NAMES}
    cases = [{"text": text, "ids": {name: encode(text) for name, encode in encoders.items()}} for text in texts]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / "tokenizer_cases.json").write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()

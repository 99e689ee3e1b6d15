# SPDX-License-Identifier: Apache-2.0
"""Lines of many kinds from a seed, for comparing tokenizers. No line holds a surrogate; some hold line ends."""
import random

ENGLISH = (
    "the model answers from several machines at once and nobody waits for it because each worker holds only its own layers "
    "I've we'll THEY'RE you'd don'T it's o'clock naïve café résumé rock'n'roll state-of-the-art e.g. i.e. U.S.A. No. 7 "
    "3.14159 1,000,000 2024-05-17 12:30 50% $9.99 £5 €7 http://a.b/c?d=e&f=g user@example.org #tag @name"
).split(" ")
CHINESE = "你好世界分布式推理把一个模型拆分到多台机器上运行，由协调者统一调度；每个工人只加载自己的几层。龍鬱繁體字「引號」《書名》……——！？、"
CODE = (
    "def f(x):\n    return x ** 2", "#include <vector>\nstd::vector<std::string>&& v;", "for (int i = 0; i < n; ++i) {", "}\n\n\n",
    "\tif (p == nullptr) return;", "SELECT * FROM t WHERE a >= 10;", "{\"a\": [1, 2.5e-3, null], \"b\": \"\\u00e9\"}",
    "x = y if z else {k: v for k, v in d.items()}", "<div class=\"a\">&nbsp;</div>", "/* comment */ // more", "0xDEADBEEF 0b1010 1_000",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "$(cat \"${HOME}/x\" | sed 's/a/b/g')", "r'\\d+(?:\\.\\d+)?'",
    "        return    a\t+\tb  ", "\r\n\r\n", "λ x → x ∘ y ≠ ∅ ∀ε>0 ∃δ", "fn main() { println!(\"{:?}\", v); }",
)
EMOJI = ("🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👋🏽", "🇫🇷🇩🇪", "❤️", "1️⃣", "🧑🏿‍🚀", "☺", "✊🏻✊🏿", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "🫠")
MARKS = (
    "e\u0301", "A\u030a", "\u0344", "q\u0323\u0307", "q\u0307\u0323", "o\u0308\u0304", "\u1100\u1161\u11a8", "\u0958", "\u212b", "\u2126",
    "Z\u0351\u036b\u0343\u0489a\u0321l\u0334g\u0315o\u035d", "\u0301", "ﬁ", "ſ", "½", "Ⅷ", "①", "㍿", "ﷺ", "\u0e33", "\u1e9b\u0323", "가\u11a8",
)
SCRIPTS = (
    "नमस्ते दुनिया क्षत्रिय १२३", "مرحبا بالعالم ١٢٣ لا", "สวัสดีชาวโลก ๑๒๓", "안녕하세요 세계", "こんにちは カタカナ ﾊﾝｶｸ", "Привет, мир", "Καλημέρα κόσμε",
    "שלום עולם", "བོད་ཡིག", "தமிழ் ௧௨௩", "မြန်မာ", "ខ្មែរ", "ქართული", "Հայերեն", "አማርኛ", "Tiếng Việt", "Ελληνικά", "বাংলা ১২৩",
)
CONTROLS = tuple(map(chr, range(0x20))) + ("\x7f", "\x80", "\x85", "\x9f", "\xad", "\u200b", "\u200d", "\u200e", "\u2028", "\u2029", "\ufeff", "\ufffd")
SPACES = (" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u202f", "\u205f", "\u3000")
LOOKALIKES = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|user|>", "<|begin_of_text|>", "<|eot_id|>", "[gMASK]", "[MASK]", "sop", "<sop>", "</s>",
    "<s>", "<unk>", "<0x0A>", "<0x41", "[INST]", "[/INST]", "<think>", "</think>", "<tool_call>", "<｜User｜>", "<|reserved_special_token_7|>",
    "▁", "▁▁the", "Ġ", "<|", "|>", "<<SYS>>",
)
PLANES = ((0, 0x7F), (0x80, 0x24F), (0x250, 0x2FFF), (0x3000, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF))


def make_lines(count, seed):
    rng = random.Random(seed)

    def some(items, least, most, glue=""):
        return glue.join(rng.choice(items) for _ in range(rng.randint(least, most)))

    def any_characters():
        return "".join(chr(rng.randint(*rng.choice(PLANES))) for _ in range(rng.randint(1, 8)))

    parts = (
        lambda: some(ENGLISH, 3, 20, " "),
        lambda: some(CHINESE, 4, 40),
        lambda: some(CODE, 1, 3, "\n"),
        lambda: some(EMOJI, 1, 6),
        lambda: some(MARKS, 1, 8),
        lambda: some(SCRIPTS, 1, 3, " "),
        lambda: some(CONTROLS, 1, 6),
        lambda: some(SPACES, 1, 6),
        lambda: rng.choice(SPACES) * rng.randint(2, 40),
        lambda: some("0123456789", 1, 25),
        lambda: some(("1", "٣", "४", "²", "Ⅷ", "½", "𝟘", "㊙", ".", ","), 1, 8),
        lambda: rng.choice(("a", "!", "好", "\u0301", "-", "=", "é", "'", "🚀", "ab", "\n ")) * rng.randint(2, 120),
        lambda: some(LOOKALIKES, 1, 3),
        any_characters,
        lambda: some("'\"`.,;:!?()[]{}<>/\\|@#$%^&*-_=+~", 1, 10),
        lambda: some(("'s", "'S", "'ll", "'LL", "'ſ", "n't", "'", "’s", "'re"), 1, 4),
    )
    lines = ["", " ", "\n", "  ", " a", "a ", "\u2581", "\u0000"]
    while len(lines) < count:
        # One kind alone, or a mixture of a few.
        kinds = rng.choices(parts, k=rng.choice((1, 1, 2, 4)))
        line = "".join(rng.choice(kinds)() + rng.choice(("", "", " ", "\n")) for _ in range(rng.randint(1, 5)))
        lines.append("".join(c for c in line if not 0xD800 <= ord(c) <= 0xDFFF))
    return lines[:count]

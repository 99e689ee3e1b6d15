# SPDX-License-Identifier: Apache-2.0
"""Files that somebody broke on purpose. Each case makes its file in an empty folder and returns the arguments
of `trireme` that name it; beside it stands what the last line on stderr must contain, and the
status where it is not 2."""
import json
import os
import shutil
import socket
import struct
from pathlib import Path

import harness


def checkpoint(folder, name="tiny-llama3"):
    """A sound one, to be broken."""
    target = Path(folder) / "model"
    shutil.copytree(harness.tiny_model(name), target)
    for path in target.iterdir():
        path.chmod(0o644)
    return target


def without(target, name):
    (target / name).unlink()
    return target


def model(target):
    return ["generate", "--model", target, "--prompt_ids", "1,2,3", "--max_tokens", "2"]


# ---- safetensors ----

def header(change):
    """The header of model.safetensors, changed by `change` (of a dict in place, or to other bytes)."""
    def make(folder):
        target = checkpoint(folder)
        path = target / "model.safetensors"
        data = path.read_bytes()
        length, = struct.unpack("<Q", data[:8])
        fields = json.loads(data[8:8 + length])
        text = change(fields)
        if not isinstance(text, bytes):
            text = json.dumps(fields).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])
        return model(target)
    return make


def weights(change):
    """The bytes of model.safetensors, changed."""
    def make(folder):
        target = checkpoint(folder)
        path = target / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        return model(target)
    return make


NORM = "model.layers.1.input_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def overlap(fields):
    first, second = (tensor for name, tensor in list(fields.items())[1:3])  # behind __metadata__
    size = second["data_offsets"][1] - second["data_offsets"][0]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]


def with_nan(data):
    length, = struct.unpack("<Q", data[:8])
    tensor = json.loads(data[8:8 + length])[NORM]
    at = 8 + length + tensor["data_offsets"][0]
    nan = {"F32": struct.pack("<f", float("nan")), "BF16": b"\xc0\x7f", "F16": b"\x00\x7e"}[tensor["dtype"]]
    return data[:at] + nan + data[at + len(nan):]


def again(fields):
    text = json.dumps(fields)
    first = next(iter(fields))
    return (text[:-1] + ", " + json.dumps({first: fields[first]})[1:]).encode()


CUT_SHORT = weights(lambda data: data[:-1000])
TENSOR_MISSING = header(lambda fields: fields.pop(UP))
SAFETENSORS = [
    ("empty file", weights(lambda data: b""), "at least 8 are needed"),
    ("cut short", CUT_SHORT, "it is truncated; download it again"),
    ("header length 2^64 - 1", weights(lambda data: b"\xff" * 8 + data[8:]), "its header has 18446744073709551615 bytes"),
    ("header length 2^64 - 8", weights(lambda data: struct.pack("<Q", (1 << 64) - 8) + data[8:]), "its header has 18446744073709551608 bytes"),
    ("header longer than the file", weights(lambda data: struct.pack("<Q", len(data)) + data[8:]), "its header needs"),
    ("header is no JSON", header(lambda fields: b"not at all"), "no valid JSON at byte"),
    ("header of another encoding", header(lambda fields: b'{"\xff\xfe": {}}'), "no valid JSON at byte"),
    ("header nested 100000 deep", header(lambda fields: b'{"a":' * 100_000), "nested deeper than 32 levels"),
    ("tensor twice", header(again), "occurs twice"),
    ("tensors overlap", header(overlap), "overlap"),
    ("tensor behind the end", header(lambda fields: fields[UP].update(data_offsets=[1 << 40, (1 << 40) + 43008])),
     "ends at byte 1099511670784 of the data"),
    ("tensor ends before it begins", header(lambda fields: fields[UP].update(data_offsets=[100, 0])), "no [begin, end] in order"),
    ("offset 2^64 - 1", header(lambda fields: fields[UP].update(data_offsets=[0, (1 << 64) - 1])), "data_offsets"),
    ("shape overflows", header(lambda fields: fields[UP].update(shape=[1 << 62, 1 << 62])), "its size overflows"),
    ("shape that times its type overflows", header(lambda fields: fields[UP].update(shape=[1 << 31, 1 << 31], dtype="F32")),
     "its size overflows"),
    ("shape that its bytes do not hold", header(lambda fields: fields[UP].update(shape=[168, 65])), UP),
    ("shape negative", header(lambda fields: fields[UP].update(shape=[-1, 64])), "has no shape that is a list"),
    ("shape of 9 dimensions", header(lambda fields: fields[UP].update(shape=[1] * 9)), "has no shape that is a list"),
    ("shape transposed", header(lambda fields: fields[UP]["shape"].reverse()), "the config needs shape [168, 64]"),
    ("type unknown", header(lambda fields: fields[UP].update(dtype="F99")), "its type is F99"),
    ("tensor missing", TENSOR_MISSING, f"tensor {UP} is missing"),
    ("name with terminal codes", header(lambda fields: fields.update({"\x1b[31m": 7})), "tensor '?[31m' is no object"),
    ("weights that are NaN", weights(with_nan), NORM),
]


# ---- the index of shards ----

def index(change):
    def make(folder):
        target = checkpoint(folder, "tiny-chatglm3-fp16-sharded")
        path = target / "model.safetensors.index.json"
        fields = json.loads(path.read_text())
        change(target, fields["weight_map"])
        path.write_text(json.dumps(fields))
        return model(target)
    return make


def send_all(to):
    return lambda target, files: files.update({name: to for name in files})


SHARD = "model-00002-of-00003.safetensors"


def replaced(make):
    """The second shard is something else."""
    def change(target, _):
        (target / SHARD).unlink()
        make(target / SHARD)
    return index(change)


SHARDS = [
    ("index that names itself", index(send_all("model.safetensors.index.json")), "index.json as safetensors: its header"),
    ("shard ../", index(send_all("../model.safetensors")), "no plain file name in the same directory"),
    ("shard /etc/passwd", index(send_all("/etc/passwd")), "no plain file name in the same directory"),
    ("shard name with a zero byte", index(send_all("a\0b")), "no plain file name in the same directory"),
    ("shard name that is a list", index(send_all(["a"])), "no plain file name in the same directory"),
    ("no shards", index(lambda target, files: files.clear()), "has no weight_map"),
    ("tensor in the wrong shard", index(send_all(SHARD)), "has no tensor"),
    ("shard missing", replaced(lambda path: None), "is missing"),
    ("shard that links to itself", replaced(lambda path: path.symlink_to(path.name)), "Too many levels of symbolic links"),
    ("shard that is a folder", replaced(lambda path: path.mkdir()), "it is a directory"),
    ("shard that is a pipe", replaced(os.mkfifo), "it is no regular file"),
]


# ---- GGUF ----

def text(value):
    return struct.pack("<Q", len(value)) + value


def gguf(body):
    def make(folder):
        path = Path(folder) / "model.gguf"
        path.write_bytes(body)
        return model(path)
    return make


def gguf_head(tensors, metadata, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, metadata)


def gguf_key(kind, value):
    return gguf_head(0, 1) + text(b"key") + struct.pack("<I", kind) + value + bytes(64)


def gguf_tensors(*tensors):
    """(dimensions, type, offset) of each; 64 bytes of data behind."""
    directory = b"".join(
        text(b"t%d" % number) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        for number, (shape, kind, offset) in enumerate(tensors))
    body = gguf_head(len(tensors), 0) + directory
    return gguf(body + bytes(-len(body) % 32 + 64))


def parts(number, count, tensors, *names):
    """A file that says it is one part of several, under each of the names."""
    def make(folder):
        keys = ((b"split.no", number), (b"split.count", count), (b"split.tensors.count", tensors))
        body = gguf_head(0, 4) + text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
        body += b"".join(text(key) + struct.pack("<II", 4, value) for key, value in keys)
        for name in names:
            (Path(folder) / name).write_bytes(body + bytes(-len(body) % 32 + 64))
        return model(Path(folder) / names[0])
    return make


BIG = 1 << 32
FIRST, SECOND = "model-00001-of-00002.gguf", "model-00002-of-00002.gguf"
GGUFS = [
    ("text", gguf(b"no model at all " * 20), "does not begin with the letters GGUF"),
    ("cut in the middle", gguf((harness.ROOT / "tests/data/gguf/tiny-llama3.gguf").read_bytes()[:90000]), "it is truncated"),
    ("version 99", gguf(gguf_head(0, 0, 99)), "its version is 99"),
    ("2^32 tensors", gguf(gguf_head(BIG, 0) + bytes(64)), "the tensor directory needs 4294967296 x 32 bytes"),
    ("2^32 keys", gguf(gguf_head(0, BIG) + bytes(64)), "the metadata needs 4294967296 x 13 bytes"),
    ("2^64 - 1 keys", gguf(gguf_head(0, (1 << 64) - 1) + bytes(64)), "the metadata needs 18446744073709551615 x 13 bytes"),
    ("key of 2^32 bytes", gguf(gguf_head(0, 1) + struct.pack("<Q", BIG) + bytes(64)), "needs 4294967296 x 1 bytes"),
    ("text of 2^63 bytes", gguf(gguf_key(8, struct.pack("<Q", 1 << 63))), "needs 9223372036854775808 x 1 bytes"),
    ("array of 2^32", gguf(gguf_key(9, struct.pack("<IQ", 4, BIG))), "has 4294967296 elements; at most"),
    ("array of arrays", gguf(gguf_key(9, struct.pack("<IQ", 9, 1))), "is an array of type 9"),
    ("type 77", gguf(gguf_key(77, bytes(8))), "has type 77"),
    ("tensor of 2^40 x 2^40", gguf_tensors(((BIG, BIG), 0, 0)), "tensor 't0'"),
    ("tensor of five dimensions", gguf_tensors(((1, 1, 1, 1, 1), 0, 0)), "tensor 't0'"),
    ("tensor of an unknown type", gguf_tensors(((32,), 999, 0)), "tensor 't0'"),
    ("tensor behind the end", gguf_tensors(((32,), 0, 1 << 40)), "but the file has"),
    ("tensors overlap", gguf_tensors(((8,), 0, 0), ((8,), 0, 0)), "overlap"),
    ("second part missing", parts(0, 2, 0, FIRST), SECOND + " is missing"),
    ("parts that are the same", parts(0, 2, 0, FIRST, SECOND), "split.no is 0"),
    ("2^32 - 1 parts", parts(0, BIG - 1, 0, FIRST), "split.count is 4294967295"),
]


# ---- config.json ----

def config(change):
    def make(folder):
        target = checkpoint(folder)
        path = target / "config.json"
        fields = json.loads(path.read_text())
        written = change(fields)
        path.write_bytes(written if isinstance(written, bytes) else json.dumps(fields).encode())
        return model(target)
    return make


def set_to(**changes):
    return config(lambda fields: fields.update(changes))


CONFIGS = [
    ("cut short", config(lambda fields: b'{"model_type": "llama", '), "no valid JSON at byte"),
    ("a list", config(lambda fields: b"[1, 2]"), "it is a JSON array; an object is needed"),
    ("key twice", config(lambda fields: b'{"model_type": "llama", "model_type": "qwen2"}'), 'the key "model_type" occurs twice'),
    ("nested 100000 deep", config(lambda fields: b"[" * 100_000), "nested deeper than 32 levels"),
    ("32 MB of it", config(lambda fields: b" " * (32 << 20) + b"{}"), "bytes; at most 16777216 are expected"),
    ("family unknown", set_to(model_type="mamba"), 'model_type is "mamba"'),
    ("family a list", set_to(model_type=["llama"]), "model_type is a list; a string is needed"),
    ("layers negative", set_to(num_hidden_layers=-1), "num_hidden_layers is -1"),
    ("layers 2^30", set_to(num_hidden_layers=1 << 30), "num_hidden_layers is 1073741824"),
    ("layers a text", set_to(num_hidden_layers="3"), 'num_hidden_layers is "3"'),
    ("layers 3.0", set_to(num_hidden_layers=3.0), "num_hidden_layers is 3.0"),
    ("hidden size 2^63", set_to(hidden_size=1 << 63), "hidden_size is 9223372036854775808"),
    ("epsilon NaN", config(lambda fields: json.dumps({**fields, "rms_norm_eps": float("nan")}).encode()), "no valid JSON at byte"),
    ("epsilon 1e999", config(lambda fields: json.dumps(fields).replace(
        f'"rms_norm_eps": {json.dumps(fields["rms_norm_eps"])}', '"rms_norm_eps": 1e999').encode()), "config.json"),
    ("heads that no KV heads divide", set_to(num_key_value_heads=3), "cannot share 3 key/value heads"),
    ("end id behind the vocabulary", set_to(eos_token_id=10_000_000), "eos_token_id is 10000000"),
    ("quantised by another library", set_to(quantization_config={"bits": 4}), "quantization_config is an object"),
    ("an embedding smaller than the vocabulary", set_to(vocab_size=200), "200"),
]


# ---- tokenizers ----

def tokenizer(change, arguments=()):
    def make(folder):
        target = checkpoint(folder)
        path = target / "tokenizer.json"
        fields = json.loads(path.read_text())
        written = change(fields)
        path.write_bytes(written if isinstance(written, bytes) else json.dumps(fields).encode())
        return [*model(target), *arguments]
    return make


def pattern(regex, prompt):
    def change(fields):
        fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    make = tokenizer(change)

    def with_prompt(folder):
        arguments = make(folder)
        path = Path(folder) / "prompts.jsonl"
        path.write_text(json.dumps({"prompt": prompt, "max_tokens": 1}) + "\n")
        return [*arguments[:3], "--input", path]
    return with_prompt


def pieces(change):
    """tiny-chatglm3, its tokenizer.model changed."""
    def make(folder):
        target = checkpoint(folder, "tiny-chatglm3")
        path = target / "tokenizer.model"
        data = change(path.read_bytes())
        path.unlink()
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            data(path)
        return model(target)
    return make


def field(number, data):
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def charsmap(units, texts=b"a\0"):
    """A normaliser whose table has these units."""
    trie = struct.pack(f"<{len(units)}I", *units)
    return field(3, field(2, struct.pack("<I", len(trie)) + trie + texts))


TOKENIZERS = [
    ("none", lambda folder: model(without(checkpoint(folder), "tokenizer.json")), "found none of tokenizer.json"),
    ("no JSON", tokenizer(lambda fields: b"\x00\x01\x02"), "no valid JSON at byte"),
    ("nested 100000 deep", tokenizer(lambda fields: b'{"a":' * 100_000), "nested deeper than 32 levels"),
    ("ids of 2^40", tokenizer(lambda fields: fields["model"]["vocab"].update({"zzz": 1 << 40})), "an id is in [0, 2^31)"),
    ("id far behind the others", tokenizer(lambda fields: fields["model"]["vocab"].update({"zzz": 1 << 30})), "in a vocabulary of"),
    ("merge of what is no token", tokenizer(lambda fields: fields["model"]["merges"].insert(0, ["qq", "zz"])), "merge 0"),
    ("more tokens than the embedding has rows", tokenizer(lambda fields: fields["model"]["vocab"].update(
        {"tok%d" % number: len(fields["model"]["vocab"]) + 50 + number for number in range(300)})), "rows"),
    ("one token more than the embedding has rows", tokenizer(lambda fields: fields["added_tokens"].append(
        {"id": 512, "content": "<|one too many|>", "special": True})), "its tokenizer has 513 tokens, its embedding only 512 rows"),
    ("added token of 1 MB", tokenizer(lambda fields: fields["added_tokens"].append(
        {"id": 511, "content": "x" * 1_000_000, "special": False, "normalized": False})), "bytes, at most 256 are taken"),
    ("pattern that backtracks for ever", pattern(r"(?:a|aa)+[bc]", "a" * 60_000), "the pre-tokenizer's pattern"),
    ("pattern that is quadratic", pattern(r"a*a*[bc]", "a" * 1_000_000), "the pre-tokenizer's pattern"),
    ("pattern with a verb", pattern(r"(*LIMIT_MATCH=1)a", "a"), "verbs (* are not supported"),
    ("pieces that are garbage", pieces(lambda data: b"\x0a" + bytes(range(256)) * 8), "not a sound sentencepiece model"),
    ("piece of 1 MB", pieces(lambda data: data + field(1, field(1, b"x" * 1_000_000))), "a piece has 1000000 bytes"),
    ("table that leads out of itself", pieces(lambda data: data + charsmap([(1 << 30) - 1024] * 256)), "leads out of itself"),
    ("table that points behind its texts", pieces(lambda data: data + charsmap([1 << 8] + [1 << 31 | 99] * 255)),
     "points behind its texts"),
    ("texts that do not end", pieces(lambda data: data + charsmap([0] * 256, b"abc")), "do not end"),
    ("a pipe", pieces(lambda data: os.mkfifo), "it is no regular file"),
]


# ---- device maps ----

def device_map(change):
    def make(folder):
        path = Path(folder) / "map.json"
        fields = {"replicas": [{"stages": [
            {"layers": {"begin": 0, "end": 3}, "has_embedding": True, "has_head": True, "shards": [{"rank": 1}]}]}],
            "dtype": "bf16", "block_size": 16, "num_blocks": 64, "max_sequences": 4, "max_batch_tokens": 64, "context": 512}
        written = change(fields)
        path.write_bytes(written if isinstance(written, bytes) else json.dumps(fields).encode())
        return ["generate", "--model", harness.tiny_model(), "--prompt_ids", "1", "--max_tokens", "1", "--device_map", path]
    return make


def stage(fields):
    return fields["replicas"][0]["stages"][0]


def hf_map(**modules):
    """Modules of tiny-llama3 to the one worker that there is, but for what is given."""
    fields = {"model": 0, "lm_head": 0} | {name.replace("__", "."): device for name, device in modules.items()}
    return device_map(lambda _: json.dumps(fields).encode())


def named(path):
    return lambda folder: ["generate", "--model", harness.tiny_model(), "--prompt_ids", "1", "--device_map", path]


DEVICE_MAPS = [
    ("no JSON", device_map(lambda fields: b"{]"), "cannot read the device map"),
    ("nested 100000 deep", device_map(lambda fields: b'{"replicas":' * 100_000), "cannot read the device map"),
    ("key unknown", device_map(lambda fields: fields.update(extra=1)), "extra"),
    ("no replica", device_map(lambda fields: fields.update(replicas=[])), "has no replica"),
    ("rank twice", device_map(lambda fields: stage(fields).update(shards=[{"rank": 1}, {"rank": 1, "tp_rank": 1}])),
     "uses rank 1 a second time"),
    ("rank that is none", device_map(lambda fields: stage(fields).update(shards=[{"rank": 7}])), "names rank 7, which is no worker"),
    ("layers with a hole", device_map(lambda fields: stage(fields)["layers"].update(begin=1)), "has layers [1, 3)"),
    ("layers negative", device_map(lambda fields: stage(fields)["layers"].update(begin=-5)), "has layers [-5, 3)"),
    ("layers behind the end", device_map(lambda fields: stage(fields)["layers"].update(end=99)), "has layers [0, 99)"),
    ("heads negative", device_map(lambda fields: stage(fields)["shards"][0].update(heads={"begin": -1, "end": 4})), "has heads [-1, 4)"),
    ("blocks negative", device_map(lambda fields: fields.update(num_blocks=-1)), "num_blocks is -1"),
    ("blocks 2^31 - 1", device_map(lambda fields: fields.update(num_blocks=(1 << 31) - 1)), "num_blocks is 2147483647"),
    ("KV of terabytes", device_map(lambda fields: fields.update(num_blocks=(1 << 27) - 1)), "needs", 1),
    ("type unknown", device_map(lambda fields: fields.update(dtype="fp7")), 'dtype is "fp7"'),
    ("module unknown", hf_map(model__layer__0=0), '"model.layer.0" is no module of'),
    ("module of many megabytes", hf_map(**{"x" * 3_000_000: 0}), "is no module of"),
    ("layer beyond the last", hf_map(model__layers__3=0), 'the nearest is "model.layers.2", its last layer'),
    ("device that is none", hf_map(model__layers__1=1), "which no worker is called; the job has 0"),
    ("device negative", hf_map(model__layers__1=-1), "which no worker is called"),
    ("device 1e300", hf_map(model__layers__1=1e300), "which no worker is called"),
    ("device a list", hf_map(model__layers__1=[0]), "is on array, which no worker is called"),
    ("module on disk", hf_map(model__layers__1="disk"), "nothing is offloaded here"),
    ("module twice", device_map(lambda _: b'{"model": 0, "model": 0, "lm_head": 0}'), "occurs twice"),
    ("module without a device", device_map(lambda _: b'{"model.layers": 0}'), "it gives no device to model.embed_tokens.weight"),
    ("a name that is none", named("balanced_low_1"), "give auto, balanced, balanced_low_0, sequential"),
    ("a folder", named("/tmp"), "it is a folder"),
    ("a device without end", named("/dev/zero"), "it is no regular file"),
]


# ---- types of weights by module ----

def types(content):
    def make(folder):
        path = Path(folder) / "types.json"
        path.write_bytes(content)
        return ["generate", "--model", harness.tiny_model(), "--prompt_ids", "1", "--max_tokens", "1", "--dtype", path]
    return make


TYPES = [
    ("no JSON", types(b"{]"), "no valid JSON at byte"),
    ("nested 100000 deep", types(b'{"":' * 100_000), "nested deeper than 32 levels"),
    ("module unknown", types(b'{"model.layer.0": "bf16"}'), 'the nearest is "model.layers.0"'),
    ("module behind the last layer", types(b'{"model.layers.3": "bf16"}'), "is no module of"),
    ("type unknown", types(b'{"lm_head": "int3"}'), '"int3"'),
    ("matrix of two types", types(b'{"model.layers.0.self_attn.k_proj": "fp16"}'), "one matrix here"),
]


# ---- what --model may name ----

def special(make):
    def case(folder):
        path = Path(folder) / "model.gguf"
        make(path)
        return model(path)
    return case


def listening_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def pickled(folder):
    target = without(checkpoint(folder), "model.safetensors")
    (target / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    return model(target)


PATHS = [
    ("nothing there", lambda folder: model(Path(folder) / "absent"), "No such file or directory"),
    ("a device without end", lambda folder: model("/dev/zero"), "it is no regular file"),
    ("a socket", special(listening_socket), "cannot read"),
    ("a pipe", special(os.mkfifo), "it is no regular file"),
    ("a link to itself", special(lambda path: path.symlink_to(path)), "Too many levels of symbolic links"),
    ("a terabyte of zeros", special(sparse), "does not begin with the letters GGUF"),
    ("a name of 5000 letters", lambda folder: model("/" + "x" * 5000), "File name too long"),
    ("a name that is no text", lambda folder: ["generate", "--model", os.fsencode(folder) + b"/\xff\xfe", "--prompt_ids", "1"],
     "its name is not UTF-8"),
    ("pickled weights only", pickled, "safetensors are needed"),
]


FILES = [(kind, *case) for kind, cases in (
    ("safetensors", SAFETENSORS), ("shards", SHARDS), ("GGUF", GGUFS), ("config", CONFIGS), ("tokenizer", TOKENIZERS),
    ("device map", DEVICE_MAPS), ("--dtype", TYPES), ("--model", PATHS)) for case in cases]

# SPDX-License-Identifier: Apache-2.0
"""Copies of a small checkpoint with one thing wrong in each."""
import json
import shutil
import struct
from pathlib import Path

import harness


def _copy(folder, name):
    target = Path(folder) / name
    shutil.copytree(harness.tiny_model(), target)
    for path in target.iterdir():
        path.chmod(0o644)
    return target


def _rewrite_header(target, change):
    path = target / "model.safetensors"
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])


def _rewrite_config(target, **changes):
    path = target / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def truncated(folder):
    target = _copy(folder, "truncated")
    path = target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return target


def header_too_long(folder):
    target = _copy(folder, "header")
    path = target / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    return target


def tensor_missing(folder):
    target = _copy(folder, "missing")
    _rewrite_header(target, lambda header: header.pop("model.layers.1.mlp.up_proj.weight"))
    return target


def wrong_shape(folder):
    target = _copy(folder, "shape")

    def transpose(header):
        header["model.layers.1.mlp.up_proj.weight"]["shape"].reverse()
    _rewrite_header(target, transpose)
    return target


def unknown_family(folder):
    target = _copy(folder, "family")
    _rewrite_config(target, model_type="mamba", architectures=["MambaForCausalLM"])
    return target


def absurd_sizes(folder):
    target = _copy(folder, "absurd")
    _rewrite_config(target, hidden_size=1 << 30, num_hidden_layers=1 << 30)
    return target


def pickled(folder):
    target = _copy(folder, "pickle")
    (target / "model.safetensors").unlink()
    (target / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    return target


def broken_config(folder):
    target = _copy(folder, "config")
    (target / "config.json").write_text('{"model_type": "llama", ')
    return target


def no_tokenizer(folder):
    target = _copy(folder, "tokenizer")
    (target / "tokenizer.json").unlink()
    return target


def vocabulary_too_large(folder):
    target = _copy(folder, "vocabulary")
    path = target / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({"id": 512, "content": "<|one too many|>", "special": True})
    path.write_text(json.dumps(tokenizer))
    return target


def truncated_gguf(folder):
    target = Path(folder) / "truncated.gguf"
    data = (harness.ROOT / "tests/data/gguf/tiny-llama3.gguf").read_bytes()
    target.write_bytes(data[:len(data) // 2])
    return target


def no_gguf(folder):
    target = Path(folder) / "text.gguf"
    target.write_text("This is no model at all. " * 20)
    return target

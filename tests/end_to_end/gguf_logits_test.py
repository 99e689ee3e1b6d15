# SPDX-License-Identifier: Apache-2.0
"""Every tiny checkpoint, written as GGUF by the Python package gguf under its own names for the tensors,
gives the logits of its safetensors, bit for bit, whatever type it is stored in."""
import json
import math
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import harness

# After harness, which chooses the Python that has them.
try:
    import gguf
    import numpy as np
except ImportError as missing:
    harness.skip_script(f"{missing}; tests/python_environment installs it into .venv")

PROGRAM = Path(harness.BINARY).with_name("logits")
# Architectures of llama.cpp. What a checkpoint of ours has and GGUF cannot say is left out.
CASES = {
    "tiny-chatglm2": ("chatglm", ()),
    "tiny-chatglm3": ("chatglm", ()),
    "tiny-glm4-chat": ("chatglm", ()),
    "tiny-glm": ("chatglm", ()),
    "tiny-glm4": ("glm4", ()),
    "tiny-gemma": ("gemma", ()),
    "tiny-gemma2": ("gemma2", ()),
    "tiny-gemma3": ("gemma3", ()),
    "tiny-llama-linear": ("llama", ()),
    "tiny-llama-yarn": ("llama", ("attention_factor", "truncate")),
    "tiny-llama3": ("llama", ()),
    "tiny-llama3.1": ("llama", ()),
    "tiny-mistral": ("llama", ()),
    "tiny-qwen2": ("qwen2", ()),
    "tiny-qwen2.5": ("qwen2", ()),
    "tiny-qwen3": ("qwen3", ()),
}
STORED = {"F32": np.float32, "F16": np.float16}


def read_safetensors(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__" or name.endswith("inv_freq"):
            continue
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        if info["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], STORED[info["dtype"]])
        tensors[name] = values.reshape(info["shape"]).astype(np.float32)
    return tensors


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape,
                        "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text
                     + b"".join(values.tobytes() for values in tensors.values()))


class Model:
    """A checkpoint of tests/data, its config in one dialect."""

    def __init__(self, name):
        self.folder = harness.ROOT / "tests/data" / name
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = read_safetensors(self.folder / "model.safetensors")

    def get(self, *keys, silent=None):
        """The first of these names that the config has."""
        return next((self.config[key] for key in keys if self.config.get(key) is not None), silent)

    @property
    def rope(self):
        scaling = self.get("rope_parameters", "rope_scaling", silent={})
        return {"type": scaling.get("rope_type", scaling.get("type", "default")), **scaling}

    def drop(self, keys):
        for part in (self.config, self.config.get("rope_parameters") or {}):
            for key in keys:
                part.pop(key, None)


def llama3_divisors(model, rope, width):
    base = rope.get("rope_theta") or model.get("rope_theta")
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(0, width, 2):
        turns = original / (2 * math.pi * base ** (i / width))
        smooth = min(max((turns - low) / (high - low), 0), 1)
        divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def add_rope(writer, model, head_dim):
    rope, theta = model.rope, model.get("rope_theta", silent=10000.0)
    theta = rope.get("rope_theta", theta)
    part = rope.get("partial_rotary_factor", model.get("partial_rotary_factor", silent=1))
    if model.config["model_type"] == "chatglm":
        part = 0.5
        ratio = model.get("rope_ratio", silent=1)
        if model.folder.name == "tiny-chatglm2":  # its positions are divided, not its base multiplied
            rope = {"type": "linear", "factor": float(ratio)}
        else:
            theta *= ratio
    width = int(head_dim * part)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(theta)
    if rope["type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(model, rope, width))
    elif rope["type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def add_attention(writer, model, heads, head_dim):
    writer.add_head_count(heads)
    writer.add_head_count_kv(model.get("num_key_value_heads", "multi_query_group_num"))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(model.get("rms_norm_eps", "layernorm_epsilon"))
    scalar = model.get("query_pre_attn_scalar")
    if scalar is not None:
        writer.add_float32(f"{writer.arch}.attention.scale", 1 / math.sqrt(scalar))
    if model.get("attn_logit_softcapping") is not None:
        writer.add_attn_logit_softcapping(model.get("attn_logit_softcapping"))
    if model.get("final_logit_softcapping") is not None:
        writer.add_final_logit_softcapping(model.get("final_logit_softcapping"))
    types, window = model.get("layer_types", silent=[]), model.get("sliding_window")
    if window is None or (writer.arch == "qwen2" and not model.get("use_sliding_window")):
        return
    writer.add_sliding_window(window)
    if model.get("sliding_window_pattern") is not None:
        writer.add_sliding_window_pattern(model.get("sliding_window_pattern"))
    elif types:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in types])


def permuted(rows, heads):
    """HF's half-split rows with rotary pairs adjacent, as llama.cpp has Llama's queries and keys."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def convert(name, values, architecture, heads, kv_heads):
    if architecture == "llama" and ".q_proj." in name:
        return permuted(values, heads)
    if architecture == "llama" and ".k_proj." in name:
        return permuted(values, kv_heads)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return values + np.float32(1)
    return values


def write_gguf(path, model, architecture, stored):
    writer = gguf.GGUFWriter(path, architecture)
    layers = model.get("num_hidden_layers", "num_layers")
    heads = model.get("num_attention_heads")
    kv_heads = model.get("num_key_value_heads", "multi_query_group_num")
    head_dim = model.get("head_dim", "kv_channels", silent=model.get("hidden_size") // heads)
    writer.add_block_count(layers)
    writer.add_embedding_length(model.get("hidden_size"))
    writer.add_feed_forward_length(model.get("intermediate_size", "ffn_hidden_size"))
    writer.add_context_length(model.get("max_position_embeddings", "seq_length"))
    add_attention(writer, model, heads, head_dim)
    add_rope(writer, model, head_dim)
    number = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    names = gguf.get_tensor_name_map(number, layers)
    for name, values in model.tensors.items():
        target = names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        values = convert(name, values, architecture, heads, kv_heads)
        if values.ndim == 1 or stored == "F32":
            writer.add_tensor(target, np.ascontiguousarray(values, np.float32))
            continue
        kind = gguf.GGMLQuantizationType[stored]
        data = gguf.quantize(np.ascontiguousarray(values), kind)
        assert (gguf.dequantize(data, kind) == values).all(), f"{name} is not exact as {stored}"
        writer.add_tensor(target, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path, ids):
    done = subprocess.run([PROGRAM, path, "fp32", *map(str, ids)], capture_output=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(done.stderr.decode())
    return done.stdout


class GgufLogits(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="trireme-gguf-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def compare(self, model, architecture, kinds=("F32", "F16", "BF16")):
        write_safetensors(self.folder / "model.safetensors", model.tensors)
        (self.folder / "config.json").write_text(json.dumps(model.config))
        rows = model.get("vocab_size", "padded_vocab_size")
        ids = np.random.default_rng(5).integers(0, rows, 40).tolist()
        expected = logits(self.folder, ids)
        self.assertEqual(len(expected), 4 * len(ids) * rows)
        for stored in kinds:
            with self.subTest(checkpoint=model.folder.name, stored=stored):
                path = self.folder / f"{stored}.gguf"
                write_gguf(path, model, architecture, stored)
                self.assertTrue(logits(path, ids) == expected, "the logits differ")

    def test_every_checkpoint(self):
        for name, (architecture, dropped) in CASES.items():
            model = Model(name)
            model.drop(dropped)
            self.compare(model, architecture)

    def test_biases(self):
        """Query and key biases are permuted as their rows are."""
        model = Model("tiny-llama3.1")
        rng = np.random.default_rng(6)
        for name, values in list(model.tensors.items()):
            if name.endswith("_proj.weight"):
                bias = rng.normal(0, 0.5, values.shape[0]).astype(np.float32)
                model.tensors[name.replace("weight", "bias")] = bias
        model.config.update(attention_bias=True, mlp_bias=True)
        self.compare(model, "llama", kinds=["F32"])


if __name__ == "__main__":
    harness.main(limit_s=200)

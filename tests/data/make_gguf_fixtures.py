# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/gguf: run once, with `pip install gguf numpy`; the results are committed.

golden.gguf holds, for each quantised type that we read, tensors of random blocks and the fp32
values that the Python `gguf` package gives for them. The others are models of this folder as
llama.cpp would convert them: same values, llama.cpp's names, Llama's query and key rows with rotary
pairs adjacent.
"""
import json
import math
import pathlib

import gguf
import numpy as np
from gguf.quants import dequantize

HERE = pathlib.Path(__file__).parent
OUT = HERE / "gguf"
ROWS, COLS = 2, 768


# Bytes of a block where its fp16 fields are.
FP16_FIELDS = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def random_blocks(rng, kind, fields):
    """[ROWS, bytes] of blocks of any bytes, but for the fp16 fields: [ROWS, blocks] each."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS, COLS // values, size), dtype=np.uint8)
    for offset in FP16_FIELDS[kind.name]:
        field = fields(rng, (ROWS, COLS // values))
        blocks[:, :, offset : offset + 2] = field[..., None].view(np.uint8)
    return blocks.reshape(ROWS, -1)


def finite(rng, shape):
    scale = rng.normal(0, 0.1, shape).astype(np.float16)
    scale[0, 0] = np.float16(6e-8)  # subnormal
    return scale


def extreme(rng, shape):
    """Infinities, NaNs, zeros and the ends of the range."""
    bits = [0x7C00, 0xFC00, 0x7E00, 0xFD55, 0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001]
    return rng.choice(np.array(bits, np.uint16), shape).view(np.float16)


def write_golden():
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(OUT / "golden.gguf", "llama")
    for name in FP16_FIELDS:
        kind = gguf.GGMLQuantizationType[name]
        for suffix, fields in (("", finite), (".extreme", extreme)):
            blocks = random_blocks(rng, kind, fields)
            writer.add_tensor(name + suffix, blocks, raw_dtype=kind)
            values = dequantize(blocks, kind).astype(np.float32)
            writer.add_tensor(name + suffix + ".expected", values)
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_safetensors(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        raw = data[begin:end]
        if info["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[info["dtype"]])
        tensors[name] = values.reshape(info["shape"]).astype(np.float32)
    return tensors


LLAMA_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers": "blk", "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
CHATGLM_NAMES = {
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.encoder.final_layernorm": "output_norm", "transformer.output_layer": "output",
    "transformer.encoder.layers": "blk", "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def permute(rows, heads):
    """HF's half-split rows to llama.cpp's adjacent pairs."""
    shape = rows.shape
    return rows.reshape(heads, 2, -1, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_model(source, architecture, names, keys):
    config = json.loads((HERE / source / "config.json").read_text())
    get = lambda key: config[keys.get(key, key)]
    writer = gguf.GGUFWriter(OUT / f"{source}.gguf", architecture)
    heads, kv_heads = get("num_attention_heads"), get("num_key_value_heads")
    head_dim = config.get(keys.get("head_dim", "head_dim"), get("hidden_size") // heads)
    writer.add_block_count(get("num_hidden_layers"))
    writer.add_embedding_length(get("hidden_size"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_feed_forward_length(get("intermediate_size"))
    writer.add_context_length(get("max_position_embeddings"))
    writer.add_layer_norm_rms_eps(get("rms_norm_eps"))
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(head_dim // 2 if architecture == "chatglm" else head_dim)
    eos = config["eos_token_id"]
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    if isinstance(eos, list):
        writer.add_eot_token_id(eos[1])
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    for name, values in read_safetensors(HERE / source / "model.safetensors").items():
        if name.endswith("inv_freq"):
            continue
        if architecture == "llama" and ".q_proj." in name:
            values = permute(values, heads)
        if architecture == "llama" and ".k_proj." in name:
            values = permute(values, kv_heads)
        for before, after in names.items():
            name = name.replace(before, after)
        writer.add_tensor(name, values.astype(np.float16 if values.ndim == 2 else np.float32))
    if "rope_scaling" in config and config["rope_scaling"]:
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config, head_dim))
    close(writer)


def llama3_divisors(config, head_dim):
    scaling = config["rope_scaling"]
    original = scaling["original_max_position_embeddings"]
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        if wavelength < original / scaling["high_freq_factor"]:
            divisors.append(1.0)
        elif wavelength > original / scaling["low_freq_factor"]:
            divisors.append(scaling["factor"])
        else:
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    write_golden()
    write_model("tiny-llama3", "llama", LLAMA_NAMES, {})
    write_model("tiny-qwen2", "qwen2", LLAMA_NAMES, {})
    write_model("tiny-chatglm3", "chatglm", CHATGLM_NAMES, {
        "num_hidden_layers": "num_layers", "num_key_value_heads": "multi_query_group_num",
        "intermediate_size": "ffn_hidden_size", "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon", "head_dim": "kv_channels",
    })

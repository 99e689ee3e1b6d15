#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Renames the tensors of a checkpoint of tests/support/make_chatglm3_random.py, where it lies, to those of a GLM
checkpoint, which transformers has without remote code: the same numbers, and nothing is written twice. ChatGLM3's
query|key|value is three tensors of GLM one behind the other; the writer leaves room in the headers for that.

  as_glm.py FOLDER
"""
import json
import re
import shutil
import struct
import sys
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[1] / "data/tiny-glm"
NAMES = {"embedding.word_embeddings.weight": "model.embed_tokens.weight",
         "rotary_pos_emb.inv_freq": "model.rotary_emb.inv_freq",
         "encoder.final_layernorm.weight": "model.norm.weight",
         "output_layer.weight": "lm_head.weight"}
NAMES_OF_LAYER = {"self_attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.gate_up_proj",
                  "mlp.dense_4h_to_h": "mlp.down_proj", "input_layernorm": "input_layernorm",
                  "post_attention_layernorm": "post_attention_layernorm"}


def renamed(name, tensor, config):
    """Pairs of a name and a tensor in place of this one."""
    name = name.removeprefix("transformer.")
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not layer:
        return [(NAMES[name], tensor)]
    prefix, what, kind = f"model.layers.{layer[1]}.", layer[2], layer[3]
    if what != "self_attention.query_key_value":
        return [(f"{prefix}{NAMES_OF_LAYER[what]}.{kind}", tensor)]
    begin, end = tensor["data_offsets"]
    row = (end - begin) // tensor["shape"][0]
    kv = config["multi_query_group_num"] * config["kv_channels"]
    parts = []
    for part, rows in (("q", config["num_attention_heads"] * config["kv_channels"]), ("k", kv), ("v", kv)):
        parts.append((f"{prefix}self_attn.{part}_proj.{kind}",
                      {**tensor, "shape": [rows, *tensor["shape"][1:]], "data_offsets": [begin, begin + rows * row]}))
        begin += rows * row
    assert begin == end, f"{name} has other rows than its config says"
    return parts


def rename_file(path, config):
    """The new names of the file's tensors."""
    with open(path, "r+b") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        new = {"__metadata__": header.pop("__metadata__")}
        for name, tensor in header.items():
            new.update(renamed(name, tensor, config))
        text = json.dumps(new, separators=(",", ":")).encode()
        assert len(text) <= size, f"{path}: the header has room for {size} bytes, needed are {len(text)}"
        file.seek(8)
        file.write(text.ljust(size))
    return [name for name in new if name != "__metadata__"]


def as_glm(folder):
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "glm":
        return
    places = {name: path.name for path in sorted(folder.glob("*.safetensors")) for name in rename_file(path, config)}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({"metadata": json.loads(index.read_text())["metadata"], "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({
        "model_type": "glm", "architectures": ["GlmForCausalLM"], "dtype": config["torch_dtype"],
        "torch_dtype": config["torch_dtype"], "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"], "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"], "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["multi_query_group_num"], "head_dim": config["kv_channels"],
        "max_position_embeddings": config["seq_length"], "rms_norm_eps": config["layernorm_epsilon"],
        "attention_bias": True, "attention_dropout": 0.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "eos_token_id": [2], "pad_token_id": 0, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}))
    (folder / "tokenizer.model").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)


if __name__ == "__main__":
    as_glm(sys.argv[1])

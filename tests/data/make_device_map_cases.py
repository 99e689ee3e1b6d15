#!/usr/bin/env python3
"""Writes device_map_cases.json: what accelerate itself answers, for tests/topology/device_map_accelerate_test.cc.

Needs accelerate, transformers and torch (5 GB with its CUDA libraries), which the tests do not:
  python3 -m venv ENV; ENV/bin/pip install torch accelerate transformers; ENV/bin/python tests/data/make_device_map_cases.py

A case is [strategy, GPUs' bytes, cpu's bytes or null, answer]; the answer gives the device of each module, embedding,
layers, norm, head, then the rotary embedding, as runs: "0*12 1*18 disk*2".
"""
import json
import random
from itertools import groupby
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes, get_balanced_memory
from torch import nn

OUT = Path(__file__).with_name("device_map_cases.json")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def hf(model_type, layers, hidden, heads, kv_heads, ffn, vocab, tied=False, **more):
    return {"model_type": model_type, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocab, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 8192, "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "eos_token_id": 2,
            "pad_token_id": 0, "bos_token_id": 1, **more}


MODELS = {
    "chatglm3-6b": {"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32,
                    "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128, "ffn_hidden_size": 13696,
                    "padded_vocab_size": 65024, "seq_length": 8192, "layernorm_epsilon": 1e-5, "add_qkv_bias": True,
                    "torch_dtype": "float16", "eos_token_id": 2},
    "llama-2-7b": hf("llama", 32, 4096, 32, 32, 11008, 32000),
    "llama-3.2-1b": hf("llama", 16, 2048, 32, 8, 8192, 128256, True, head_dim=64),
    "llama-3-70b": hf("llama", 80, 8192, 64, 8, 28672, 128256),
    "smollm2-135m": hf("llama", 30, 576, 9, 3, 1536, 49152, True),
    "qwen2.5-0.5b": hf("qwen2", 24, 896, 14, 2, 4864, 151936, True),
    "qwen3-8b": hf("qwen3", 36, 4096, 32, 8, 12288, 151936, head_dim=128),
    "mistral-7b": hf("mistral", 32, 4096, 32, 8, 14336, 32768, sliding_window=None),
    "gemma-2-2b": hf("gemma2", 26, 2304, 8, 4, 9216, 256000, True, head_dim=256, query_pre_attn_scalar=256,
                     hidden_activation="gelu_pytorch_tanh", sliding_window=4096, attn_logit_softcapping=50.0,
                     final_logit_softcapping=30.0),
    "glm-4-9b": hf("glm", 40, 4096, 32, 2, 13696, 151552, head_dim=128, attention_bias=True),
    "glm-4-9b-0414": hf("glm4", 40, 4096, 32, 2, 13696, 151552, head_dim=128, attention_bias=True),
}


class GLMBlock(nn.Module):
    """The modules of ChatGLM3's own class, which needs code of its repository."""

    def __init__(self, c):
        super().__init__()
        kv = 2 * c["multi_query_group_num"] * c["kv_channels"]
        self.input_layernorm = norm(c)
        self.self_attention = nn.Module()
        self.self_attention.query_key_value = nn.Linear(c["hidden_size"], c["hidden_size"] + kv, bias=True)
        self.self_attention.core_attention = nn.Module()
        self.self_attention.core_attention.attention_dropout = nn.Dropout()
        self.self_attention.dense = nn.Linear(c["hidden_size"], c["hidden_size"], bias=False)
        self.post_attention_layernorm = norm(c)
        self.mlp = nn.Module()
        self.mlp.dense_h_to_4h = nn.Linear(c["hidden_size"], 2 * c["ffn_hidden_size"], bias=False)
        self.mlp.dense_4h_to_h = nn.Linear(c["ffn_hidden_size"], c["hidden_size"], bias=False)


def norm(c):
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(c["hidden_size"]))
    return module


def chatglm(c):
    model, body = nn.Module(), nn.Module()
    body.embedding = nn.Module()
    body.embedding.word_embeddings = nn.Embedding(c["padded_vocab_size"], c["hidden_size"])
    body.rotary_pos_emb = nn.Module()
    body.rotary_pos_emb.register_buffer("inv_freq", torch.empty(c["kv_channels"] // 4))
    body.encoder = nn.Module()
    body.encoder.layers = nn.ModuleList([GLMBlock(c) for _ in range(c["num_layers"])])
    body.encoder.final_layernorm = norm(c)
    body.output_layer = nn.Linear(c["hidden_size"], c["padded_vocab_size"], bias=False)
    model.transformer = body
    return model


def build(config):
    with init_empty_weights(include_buffers=True):
        if config["model_type"] == "chatglm":
            return chatglm(config), ["GLMBlock"]
        arguments = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(config["model_type"], **arguments))
    model.tie_weights()
    return model, [type(model.model.layers[0]).__name__]


def modules_of(config):
    if config["model_type"] == "chatglm":
        layers = [f"transformer.encoder.layers.{i}" for i in range(config["num_layers"])]
        return ["transformer.embedding.word_embeddings", *layers, "transformer.encoder.final_layernorm", "transformer.output_layer",
                "transformer.rotary_pos_emb"]
    layers = [f"model.layers.{i}" for i in range(config["num_hidden_layers"])]
    return ["model.embed_tokens", *layers, "model.norm", "lm_head", "model.rotary_emb"]


def device_of(device_map, name):
    while name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


def answer(model, classes, dtype, strategy, gpus, cpu, names):
    memory = {index: size for index, size in enumerate(gpus)}
    memory["cpu"] = 0 if cpu is None else cpu
    if strategy != "sequential":
        memory = get_balanced_memory(model, memory, classes, dtype=dtype, low_zero=strategy == "balanced_low_0")
    if cpu is None:
        del memory["cpu"]
    device_map = infer_auto_device_map(model, memory, classes, dtype=dtype)
    devices = [str(device_of(device_map, name)) for name in names]
    return " ".join(f"{device}*{len(list(run))}" for device, run in groupby(devices))


def main():
    draw = random.Random(20261125)
    result = {"accelerate": accelerate.__version__, "transformers": transformers.__version__, "models": []}
    for name, config in MODELS.items():
        model, classes = build(config)
        names = modules_of(config)
        cases = []
        for number in range(36):
            dtype = draw.choice(["bf16", "bf16", "fp32", "fp16"])
            total = compute_module_sizes(model, dtype=DTYPES[dtype])[""]
            gpus = draw.choice([1, 2, 2, 3, 4, 4, 6, 8])
            room = draw.choice([0.7, 0.95, 1.02, 1.1, 1.3, 2.0, 5.0])
            weights = [draw.choice([1, 1, 1, 2, 0.5, draw.uniform(0.2, 3)]) for _ in range(gpus)]
            budgets = [int(total * room * weight / sum(weights)) for weight in weights]
            cpu = draw.choice([None, int(total * draw.uniform(0.1, 1.5))])
            strategy = ("balanced", "balanced_low_0", "sequential")[number % 3]
            cases.append([strategy, dtype, budgets, cpu,
                          answer(model, classes, DTYPES[dtype], strategy, budgets, cpu, names)])
        result["models"].append({"name": name, "config": config, "cases": cases})
    lines = []
    for entry in result["models"]:
        cases = ",\n".join(json.dumps(case) for case in entry["cases"])
        lines.append(f'{{"name": "{entry["name"]}",\n"config": {json.dumps(entry["config"])},\n"cases": [\n{cases}]}}')
    head = json.dumps({key: value for key, value in result.items() if key != "models"})[:-1]
    OUT.write_text(f'{head}, "models": [\n' + ",\n".join(lines) + "]}\n")


if __name__ == "__main__":
    main()

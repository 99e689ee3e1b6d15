# SPDX-License-Identifier: Apache-2.0
"""ChatGLM for make_fixtures.py: the names, config and prefix encoder of its authors, whose class
transformers no longer has, and a forward over them that shares no code with transformers.
"""
import numpy as np
import torch


def exact(values):
    """The nearest that fp32, fp16 and bf16 all hold: bf16, and no subnormal of fp16."""
    values = values.to(torch.bfloat16)
    return torch.where(values.abs() < 2.0**-14, torch.zeros_like(values), values)


def chatglm_config(glm, version, stored, extra):
    return {
        "_name_or_path": f"THUDM/{version}",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": glm.intermediate_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": glm.hidden_size,
        "kv_channels": glm.head_dim,
        "layernorm_epsilon": glm.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": glm.num_key_value_heads,
        "num_attention_heads": glm.num_attention_heads,
        "num_layers": glm.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": glm.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": glm.max_position_embeddings,
        "use_cache": True,
        "torch_dtype": stored,
        "tie_word_embeddings": False,
        "eos_token_id": glm.eos_token_id,
        "pad_token_id": glm.pad_token_id,
        **extra,
    }


def chatglm_names(state, layers):
    """Glm's tensors under the names of ChatGLM's authors."""
    result = {
        "transformer.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": state["model.norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
    }
    for layer in range(layers):
        old, new = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            result[f"{new}{norm}.weight"] = state[f"{old}{norm}.weight"]
        for kind in ("weight", "bias"):
            parts = [state[f"{old}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            result[f"{new}self_attention.query_key_value.{kind}"] = torch.cat(parts)
        result[f"{new}self_attention.dense.weight"] = state[f"{old}self_attn.o_proj.weight"]
        result[f"{new}mlp.dense_h_to_4h.weight"] = state[f"{old}mlp.gate_up_proj.weight"]
        result[f"{new}mlp.dense_4h_to_h.weight"] = state[f"{old}mlp.down_proj.weight"]
    return result


def draw_prefix(glm, length, hidden, seed):
    """Tensors of the prefix encoder, and [1, groups, length, D] of every layer's K and V."""
    layers, groups, dim = glm.num_hidden_layers, glm.num_key_value_heads, glm.head_dim
    width = layers * 2 * groups * dim
    generator = torch.Generator().manual_seed(seed + 1)
    name = "transformer.prefix_encoder."

    def random(scale, *shape):
        return exact(scale * torch.randn(shape, generator=generator)).float()

    values = random(1.2, length, width)
    tensors = {f"{name}embedding.weight": values}
    if hidden:
        for index, rows, columns in ((0, hidden, width), (2, width, hidden)):
            tensors[f"{name}trans.{index}.weight"] = random(1.5 / columns**0.5, rows, columns)
            tensors[f"{name}trans.{index}.bias"] = random(0.3, rows)
        first, second = (
            (tensors[f"{name}trans.{index}.weight"], tensors[f"{name}trans.{index}.bias"])
            for index in (0, 2)
        )
        values = torch.tanh(values @ first[0].T + first[1]) @ second[0].T + second[1]
    values = values.view(length, layers, 2, groups, dim).permute(1, 2, 3, 0, 4)
    return tensors, [(layer[0][None], layer[1][None]) for layer in values]


def chatglm_forward(config, tensors, ids, divide_positions):
    """[tokens, vocabulary] in float64: the authors' names and layout, and no code of transformers."""
    get = lambda name: tensors[name].double().numpy()
    heads, groups, dim = (
        config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels")
    )
    ratio, half = config.get("rope_ratio", 1), dim // 2
    base, divisor = (10000, ratio) if divide_positions else (10000 * ratio, 1)
    angles = np.outer(np.arange(len(ids)) / divisor, base ** (-np.arange(0, half, 2) / half))
    turn = np.exp(1j * angles)[:, None]  # neighbouring channels as one complex number

    def rotate(x):
        pairs = (x[..., 0:half:2] + 1j * x[..., 1:half:2]) * turn
        turned = np.stack([pairs.real, pairs.imag], -1).reshape(*x.shape[:2], half)
        return np.concatenate([turned, x[..., half:]], -1)

    def norm(x, name):
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + config["layernorm_epsilon"]) * get(f"{name}.weight")

    prefix = np.zeros((0, 2 * config["num_layers"], groups, dim))
    if "pre_seq_len" in config:
        encoder = "transformer.prefix_encoder."
        prefix = get(f"{encoder}embedding.weight")
        if config["prefix_projection"]:
            linear = lambda x, i: x @ get(f"{encoder}trans.{i}.weight").T + get(
                f"{encoder}trans.{i}.bias"
            )
            prefix = linear(np.tanh(linear(prefix, 0)), 2)
        prefix = prefix.reshape(len(prefix), -1, groups, dim)
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    mask = np.concatenate([np.zeros((len(ids), len(prefix))), mask], 1)
    x = get("transformer.embedding.word_embeddings.weight")[ids]
    for layer in range(config["num_layers"]):
        name = f"transformer.encoder.layers.{layer}."
        qkv = norm(x, name + "input_layernorm") @ get(f"{name}self_attention.query_key_value.weight").T
        qkv = (qkv + get(f"{name}self_attention.query_key_value.bias")).reshape(len(ids), -1, dim)
        q, k, v = np.split(qkv, [heads, heads + groups], 1)
        k = np.concatenate([prefix[:, 2 * layer], rotate(k)]).repeat(heads // groups, 1)
        v = np.concatenate([prefix[:, 2 * layer + 1], v]).repeat(heads // groups, 1)
        scores = np.einsum("thd,shd->hts", rotate(q), k) / dim**0.5 + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("hts,shd->thd", weights, v).reshape(len(ids), -1)
        x = x + y @ get(f"{name}self_attention.dense.weight").T
        y = norm(x, name + "post_attention_layernorm") @ get(f"{name}mlp.dense_h_to_4h.weight").T
        gate, up = np.split(y, 2, 1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ get(f"{name}mlp.dense_4h_to_h.weight").T
    return norm(x, "transformer.encoder.final_layernorm") @ get("transformer.output_layer.weight").T

# SPDX-License-Identifier: Apache-2.0
"""The table of make_fixtures.py: a function a family, each with the folders that it gives."""
import dataclasses

import transformers

from fixture_tokenizers import VOCAB, byte_bpe, chatglm_tokenizer, llama_tokenizer, tiktoken_file


@dataclasses.dataclass
class Fixture:
    config: transformers.PreTrainedConfig
    tokenizer: object  # writes its files into a folder, returns the prompts' ids
    dialect: str = "published"  # or "transformers 5"
    stored: str = "bfloat16"
    felt: tuple = ()  # (option, another value) of the config: must move the logits
    also: dict = dataclasses.field(default_factory=dict)  # further keys of config.json
    chatglm: str = ""  # the version, for the names of ChatGLM's authors
    prefix: tuple = ()  # (length, width of its MLP or 0)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def shape(heads, kv_heads, head_dim, layers=2, hidden=48, ffn=104, vocab=VOCAB, **more):
    """FFNs are not a multiple of the 32 columns in which they are cut; 104 leaves TP 4 an empty cut."""
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        **({"head_dim": head_dim} if head_dim else {}),
        **more,
    }


def rope(theta, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def glm(theta=10000.0, eps=1e-5, **more):
    """The class that computes for ChatGLM; 16 padding rows, which hold values like any other."""
    parameters = rope(theta, partial_rotary_factor=0.5, **more.pop("scaling", {}))
    more = {"eos_token_id": 2, "pad_token_id": 0, "vocab": VOCAB + 16, **more}
    return transformers.GlmConfig(**shape(**more), rope_parameters=parameters, rms_norm_eps=eps)


def family_chatglm():
    plain = rope(10000.0, partial_rotary_factor=0.5)
    eps = ("rms_norm_eps", 2e-5)
    eos = [VOCAB - 10, VOCAB - 3, VOCAB - 1]  # <|endoftext|> <|user|> <|observation|>
    return {
        # 32k: positions are divided by rope_ratio.
        "tiny-chatglm2": Fixture(
            glm(heads=6, kv_heads=2, head_dim=12, scaling={"rope_type": "linear", "factor": 4.0}),
            chatglm_tokenizer("chatglm2-6b-32k"),
            chatglm="chatglm2-6b-32k",
            stored="float16",
            also={"rope_ratio": 4},
            felt=(("rope_parameters", plain), eps),
        ),
        # The base is multiplied by rope_ratio.
        "tiny-glm4-chat": Fixture(
            glm(heads=6, kv_heads=2, head_dim=16, theta=500000.0, eps=1.5625e-7, eos_token_id=eos),
            tiktoken_file("tiny-glm"),
            chatglm="glm-4-9b-chat",
            also={"rope_ratio": 50},
            felt=(("rope_parameters", plain), ("rms_norm_eps", 1e-5)),
        ),
        "tiny-chatglm3-prefix": Fixture(
            glm(heads=4, kv_heads=2, head_dim=16, layers=3),
            chatglm_tokenizer("chatglm3-6b"),
            chatglm="chatglm3-6b",
            prefix=(5, 0),
            also={"pre_seq_len": 5, "prefix_projection": False},
            felt=(eps,),
        ),
        "tiny-chatglm3-prefix-mlp": Fixture(
            glm(heads=5, kv_heads=1, head_dim=8, layers=3),
            chatglm_tokenizer("chatglm3-6b"),
            chatglm="chatglm3-6b",
            prefix=(7, 48),
            also={"pre_seq_len": 7, "prefix_projection": True},
        ),
    }


def family_glm4():
    parameters = rope(10000.0, partial_rotary_factor=0.5)
    eos = [VOCAB - 10, VOCAB - 3, VOCAB - 1]
    config = transformers.Glm4Config(
        **shape(heads=6, kv_heads=2, head_dim=16),
        rope_parameters=parameters,
        attention_bias=True,
        rms_norm_eps=1e-5,
        eos_token_id=eos,
        pad_token_id=eos[0],
    )
    felt = (("rms_norm_eps", 2e-5), ("rope_parameters", {**parameters, "partial_rotary_factor": 1.0}))
    return {
        "tiny-glm4": Fixture(config, byte_bpe("tiny-glm"), dialect="transformers 5", felt=felt)
    }


def llama(heads, kv_heads, head_dim, parameters, **more):
    return transformers.LlamaConfig(
        **shape(heads, kv_heads, head_dim, **more), rope_parameters=parameters, rms_norm_eps=1e-5
    )


def family_llama():
    bos, end_of_text, eot = VOCAB - 5, VOCAB - 4, VOCAB - 1
    ids = {"bos_token_id": bos, "eos_token_id": [end_of_text, eot]}
    yarn = rope(
        500.0,
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=16,
        beta_fast=2.0,
        beta_slow=0.25,
        truncate=False,
        attention_factor=1.25,
    )
    return {
        "tiny-llama3.1": Fixture(
            llama(6, 3, None, rope(500000.0, **LLAMA3), hidden=72, tie_word_embeddings=True, **ids),
            byte_bpe("tiny-llama3", "<|begin_of_text|>"),
            felt=(("rope_parameters", rope(500000.0)),),
        ),
        "tiny-llama-linear": Fixture(
            llama(4, 4, None, rope(10000.0, rope_type="linear", factor=4.0)),
            llama_tokenizer("LlamaTokenizer"),
            stored="float16",
            felt=(("rope_parameters", rope(10000.0)), ("rms_norm_eps", 2e-5)),
        ),
        # Biases behind sums over the ranks, which must be added once.
        "tiny-llama-bias": Fixture(
            llama(6, 2, None, rope(10000.0), attention_bias=True, mlp_bias=True),
            llama_tokenizer("LlamaTokenizer"),
        ),
        "tiny-llama-yarn": Fixture(
            llama(5, 1, 16, yarn, hidden=40, max_position_embeddings=64, **ids),
            byte_bpe("tiny-llama3", "<|begin_of_text|>"),
            dialect="transformers 5",
            felt=(
                ("rope_parameters", {**yarn, "truncate": True}),
                ("rope_parameters", {**yarn, "attention_factor": 1.0}),
                ("rope_parameters", {**yarn, "beta_fast": 4.0}),
                ("rope_parameters", {**yarn, "beta_slow": 1.0}),
            ),
        ),
    }


def family_qwen():
    yarn = rope(1000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    ids = {"bos_token_id": VOCAB - 3, "eos_token_id": [VOCAB - 1, VOCAB - 3]}
    qwen2 = transformers.Qwen2Config(
        **shape(heads=4, kv_heads=2, head_dim=None, hidden=64, vocab=VOCAB + 8, **ids),
        rope_parameters=yarn,
        rms_norm_eps=1e-6,
    )
    # Three layers, of which the last two have a window.
    qwen3 = transformers.Qwen3Config(
        **shape(heads=4, kv_heads=2, head_dim=24, layers=3, vocab=VOCAB + 8, **ids),
        rope_parameters=rope(1000000.0),
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=1,
    )
    return {
        # As published, with a window that is switched off.
        "tiny-qwen2.5": Fixture(
            qwen2,
            byte_bpe("tiny-qwen2"),
            also={"use_sliding_window": False, "sliding_window": 10, "max_window_layers": 1},
            felt=(("rope_parameters", rope(1000.0)), ("rms_norm_eps", 2e-6)),
        ),
        "tiny-qwen3": Fixture(
            qwen3,
            byte_bpe("tiny-qwen2"),
            dialect="transformers 5",
            felt=(("sliding_window", 8), ("layer_types", ["full_attention"] * 3)),
        ),
    }


def family_mistral():
    config = transformers.MistralConfig(
        **shape(heads=6, kv_heads=2, head_dim=12, layers=3),
        rope_parameters=rope(10000.0),
        sliding_window=10,
        rms_norm_eps=1e-5,
    )
    felt = (("sliding_window", None), ("sliding_window", 9), ("rms_norm_eps", 2e-5))
    return {"tiny-mistral": Fixture(config, llama_tokenizer("LlamaTokenizer"), felt=felt)}


def family_gemma():
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    tokenizer = llama_tokenizer("GemmaTokenizer")
    gemma = transformers.GemmaConfig(
        **shape(heads=4, kv_heads=1, head_dim=20, **ids), rope_parameters=rope(10000.0)
    )
    gemma2 = transformers.Gemma2Config(
        **shape(heads=4, kv_heads=2, head_dim=16, layers=3, **ids),
        rope_parameters=rope(10000.0),
        query_pre_attn_scalar=24,
        attn_logit_softcapping=4.0,
        final_logit_softcapping=12.0,
        sliding_window=8,
    )
    both = {
        "sliding_attention": rope(10000.0),
        "full_attention": rope(1000000.0, rope_type="linear", factor=8.0),
    }
    gemma3 = transformers.Gemma3TextConfig(
        **shape(heads=4, kv_heads=1, head_dim=16, layers=3, **ids),
        rope_parameters=both,
        query_pre_attn_scalar=24,
        sliding_window=8,
        sliding_window_pattern=3,
    )
    swapped = {**both, "sliding_attention": both["full_attention"]}
    unscaled = {**both, "full_attention": rope(1000000.0)}
    return {
        # The older files say gelu and mean its approximation by tanh.
        "tiny-gemma": Fixture(
            gemma, tokenizer, also={"hidden_act": "gelu"}, felt=(("hidden_act", "gelu"),)
        ),
        "tiny-gemma2": Fixture(
            gemma2,
            tokenizer,
            dialect="transformers 5",
            felt=(
                ("query_pre_attn_scalar", 16),
                ("attn_logit_softcapping", None),
                ("final_logit_softcapping", None),
                ("sliding_window", 7),
                ("layer_types", ["full_attention"] * 3),
            ),
        ),
        "tiny-gemma3": Fixture(
            gemma3,
            tokenizer,
            felt=(
                ("query_pre_attn_scalar", 16),
                ("rope_parameters", swapped),
                ("rope_parameters", unscaled),
                ("layer_types", ["sliding_attention"] * 3),
            ),
        ),
    }


def all_fixtures():
    table = {}
    for family in (family_chatglm, family_glm4, family_llama, family_qwen, family_mistral, family_gemma):
        table.update(family())
    return table

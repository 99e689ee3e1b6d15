# SPDX-License-Identifier: Apache-2.0
"""Writes the tiny-* checkpoints that fixture_families.py lists, with transformers' outputs as their
references. Run once; the results are committed:

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 \
        tokenizers==0.23.3 protobuf==7.36.2 sentencepiece==0.2.3
    python make_fixtures.py [name ...]

Weights are random, seeded by the folder's name, and the same in fp32, fp16 and bf16. Every folder
is read back by transformers as it is written, but for the `chatglm` names, which transformers no
longer knows: there Glm's class computes, and a second forward in numpy over the written file must
agree. Each option of a family that a forgetful engine could pass over must move the logits.
"""
import copy
import json
import pathlib
import shutil
import sys
import tempfile
import zlib

import torch
import transformers
from safetensors.torch import load_file, save_file

from fixture_chatglm import chatglm_config, chatglm_forward, chatglm_names, draw_prefix, exact
from fixture_families import all_fixtures
from fixture_tokenizers import write_json

HERE = pathlib.Path(__file__).parent
STEPS = 32  # greedy tokens
EMBEDDING = 0.05  # deviation of its values
MARGIN = 0.01  # least of the top1 - top2 of every greedy step
LENGTHS = [4, 25, 9]  # of the prompts: the second is beyond every window and original context


# ---- weights ----


def draw(model, seed):
    """Attention that peaks, norms far from 1, and an embedding so small that eps is felt; logits
    with a deviation of 3, also where the head is the embedding."""
    generator = torch.Generator().manual_seed(seed)
    gemma = model.config.model_type.startswith("gemma")  # its norms multiply by 1 + weight
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight") or "layernorm" in name:
            value = 0.28 * noise + 1
            if name == "model.norm.weight" and model.config.tie_word_embeddings:
                value *= 3 / (EMBEDDING * len(noise) ** 0.5)
            value -= 1 if gemma else 0
        elif name.endswith(".bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name:
            value = EMBEDDING * noise
        else:
            value = noise * (3 if name == "lm_head.weight" else 1.4) / parameter.shape[-1] ** 0.5
        parameter.data = exact(value).float()


# ---- the reference ----


class Reference:
    """transformers' model in fp32, with a learned prefix in front of the cache or none."""

    def __init__(self, model, prefix=None):
        self.model, self.prefix = model.eval(), prefix

    @torch.no_grad()
    def logits(self, ids, cache=None, start=0):
        cache = self.new_cache() if cache is None else cache
        positions = torch.arange(start, start + len(ids))[None]
        output = self.model(
            torch.tensor([ids]), position_ids=positions, past_key_values=cache, use_cache=True
        )
        return output.logits[0].float()

    def new_cache(self):
        cache = transformers.DynamicCache(config=self.model.config)
        for layer, (key, value) in enumerate([] if self.prefix is None else self.prefix):
            cache.update(key, value, layer)
        return cache

    def greedy(self, ids):
        """Tokens and margins, one at a time over the cache; a run over the whole must agree."""
        cache, tokens, margins, rows = self.new_cache(), [], [], []
        rows.append(self.logits(ids, cache)[-1])
        for step in range(STEPS):
            best = torch.topk(rows[-1], 2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            if step + 1 < STEPS:
                rows.append(self.logits([tokens[-1]], cache, len(ids) + step)[0])
        whole = self.logits(ids + tokens[:-1])[len(ids) - 1 :]
        error = float((whole - torch.stack(rows)).abs().max())
        assert error < 5e-5, f"with and without the cache: {error}"
        return tokens, margins


def reference_outputs(reference, prompts):
    """The contents of ref.json and ref.safetensors, and the least margin."""
    entries, tensors = [], {}
    for index, ids in enumerate(prompts):
        tensors[f"prompt{index}.logits"] = logits = reference.logits(ids)
        tokens, margins = reference.greedy(ids)
        top = torch.topk(logits[-1], 20)
        entry = {
            "prompt_ids": ids,
            "last_top20_ids": top.indices.tolist(),
            "last_top20": top.values.tolist(),
            "greedy32": tokens,
            "greedy_margin": margins,
        }
        entries.append(entry)
    return entries, tensors, min(min(entry["greedy_margin"]) for entry in entries)


# ---- configs ----


def published(config):
    """As checkpoints on the hub have it: rope_theta and rope_scaling, torch_dtype."""
    data = {**config, "torch_dtype": config["dtype"], "transformers_version": "4.43.0"}
    del data["dtype"]
    rope, old_key = data.pop("rope_parameters"), True
    if "full_attention" in rope:  # Gemma 3 has two
        data["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        data["sliding_window_pattern"] = data["layer_types"].index("full_attention") + 1
        rope, old_key = rope["full_attention"], False
    data.pop("layer_types", None)
    if data.get("head_dim", 0) * data["num_attention_heads"] == data["hidden_size"]:
        del data["head_dim"]
    rope = dict(rope)
    data["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        data["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    data["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    if rope["rope_type"] in ("linear", "yarn") and old_key:
        rope["type"] = rope.pop("rope_type")
    return data


# ---- one folder ----


def build_model(config, seed):
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw(model, seed)
    return model


def check_options(name, fixture, reference, prompts, seed):
    """Every option that a forgetful reader could pass over moves the logits by five times what
    golden tests let pass, and mostly by thousands."""
    expected = reference.logits(prompts[1])
    for key, value in fixture.felt:
        config = copy.deepcopy(fixture.config)
        setattr(config, key, value)
        changed = Reference(build_model(config, seed), reference.prefix).logits(prompts[1])
        moved = float((changed - expected).abs().max())
        print(f"  {name}: {key} {value} moves the logits by {moved:.3g}")
        assert moved > 1e-3, key


def draw_model(fixture, prompts, name):
    """The first of the seeds whose greedy tokens no rounding can change."""
    for attempt in range(50):
        seed = zlib.crc32(f"{name} {attempt}".encode())
        model, tensors, prefix = build_model(fixture.config, seed), {}, None
        if fixture.prefix:
            tensors, prefix = draw_prefix(fixture.config, *fixture.prefix, seed)
        reference = Reference(model, prefix)
        outputs = reference_outputs(reference, prompts)
        if outputs[-1] >= MARGIN:
            return seed, reference, tensors, outputs
    raise ValueError(f"{name}: no seed gives a margin of {MARGIN}")


def write_model(folder, fixture, model, prefix_tensors):
    """config.json, generation_config.json and model.safetensors."""
    state = dict(model.state_dict())
    if fixture.config.tie_word_embeddings:
        del state["lm_head.weight"]
    if fixture.chatglm:
        state = {**chatglm_names(state, fixture.config.num_hidden_layers), **prefix_tensors}
        config = chatglm_config(fixture.config, fixture.chatglm, fixture.stored, fixture.also)
    else:
        config = json.loads(fixture.config.to_json_string())
        config.update(architectures=[type(model).__name__], dtype=fixture.stored)
        config = published(config) if fixture.dialect == "published" else config
        config.update(fixture.also)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(folder / "generation_config.json", ids)
    write_json(folder / "config.json", config)
    for dtype in (torch.bfloat16, torch.float16):
        assert all(torch.equal(value.to(dtype).float(), value) for value in state.values())
    stored = {key: value.to(getattr(torch, fixture.stored)) for key, value in state.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def check_folder(folder, fixture, reference, ids):
    """What the folder says, read anew, gives the same logits."""
    if fixture.chatglm:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        divide = fixture.chatglm.startswith("chatglm2")
        again = torch.from_numpy(chatglm_forward(config, tensors, ids, divide))
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        again = Reference(model).logits(ids)
    error = float((again - reference.logits(ids)).abs().max())
    assert error < 5e-5, f"{folder}: read again, the logits differ by {error}"


def write_fixture(name, fixture):
    folder = pathlib.Path(tempfile.mkdtemp(dir=HERE, prefix=f".{name}"))
    folder.chmod(0o755)
    prompts = [ids[:length] for ids, length in zip(fixture.tokenizer(folder), LENGTHS)]
    seed, reference, prefix_tensors, (entries, tensors, margin) = draw_model(fixture, prompts, name)
    write_model(folder, fixture, reference.model, prefix_tensors)
    check_folder(folder, fixture, reference, prompts[1])
    check_options(name, fixture, reference, prompts, seed)
    about = f"fp32, transformers {transformers.__version__} eager"
    write_json(folder / "ref.json", {"compute": about, "prompts": entries})
    save_file(tensors, folder / "ref.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    shutil.rmtree(HERE / name, ignore_errors=True)
    folder.rename(HERE / name)
    size = sum(file.stat().st_size for file in (HERE / name).iterdir())
    print(f"{name}: {size // 1024} KiB, least margin {margin:.2g}")


if __name__ == "__main__":
    table = all_fixtures()
    for chosen in sys.argv[1:] or table:
        write_fixture(chosen, table[chosen])

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The engine beside transformers on one GPU: the same weights (the shapes of ChatGLM3-6B as a GLM checkpoint, which
transformers has without remote code), prompts of the same lengths, in turns.

  compare_transformers.py BENCH FOLDER [--rounds 2]

BENCH: the program gpu_model_bench. FOLDER: a checkpoint of tests/support/make_chatglm3_random.py, which becomes a GLM
checkpoint where it lies. Needs torch and transformers. Prints JSON lines: medians of ours over theirs, with the
issue's bars.
"""
import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from as_glm import as_glm

WARM = 8


def release():
    gc.collect()
    torch.cuda.empty_cache()


def seconds_of(work):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def theirs(folder):
    """Tokens per second of transformers' generate(), and what its load takes."""
    found = {}

    def load():
        found["model"] = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")

    load_s = seconds_of(load)
    model = found["model"].eval()

    def generate(batch, prompt, tokens):
        ids = torch.randint(3, 400, (batch, prompt), device="cuda")
        return seconds_of(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                                 max_new_tokens=tokens, min_new_tokens=tokens))

    def rate(batch, prompt, timed):
        """Of the tokens after the first ones: the prompt is no part of it."""
        return batch * timed / (generate(batch, prompt, WARM + timed) - generate(batch, prompt, WARM))

    with torch.inference_mode():
        generate(1, 16, WARM)
        result = {"load_s": load_s, "decode, batch 1, tokens/s": rate(1, 16, 128),
                  "decode, batch 32, tokens/s": rate(32, 64, 64)}
        generate(1, 2048, 1)
        result["prefill of 2048, tokens/s"] = 2048 / statistics.median(generate(1, 2048, 1) for _ in range(3))
    del model
    found.clear()
    release()
    return result


def ours(bench, folder):
    out = subprocess.run([bench, folder, "--rounds", "1"], stdout=subprocess.PIPE, text=True, check=True).stdout
    result = {}
    for line in map(json.loads, out.splitlines()):
        if "load_s" in line:
            result["load_s"] = line["load_s"]
        elif "bar" in line:
            result[line["bar"].split(": ", 1)[1]] = line["value"]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    as_glm(options.folder)
    rounds = []
    for _ in range(options.rounds):
        rounds.append((ours(options.bench, options.folder), theirs(options.folder)))
        print(json.dumps({"ours": rounds[-1][0], "transformers": rounds[-1][1]}), flush=True)
    print(json.dumps({"machine": torch.cuda.get_device_name(), "torch": torch.__version__,
                      "transformers": transformers.__version__}))
    missed = 0
    for name, target in (("decode, batch 1, tokens/s", 4), ("decode, batch 32, tokens/s", 6),
                         ("prefill of 2048, tokens/s", 1.3), ("load_s", 0.5)):
        value = statistics.median(mine[name] / other[name] for mine, other in rounds)
        good = value <= target if name == "load_s" else value >= target
        missed += not good
        print(json.dumps({"bar": f"ours over transformers: {name}", "value": round(value, 3), "target": target, "ok": good}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

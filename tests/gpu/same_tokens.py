#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model's greedy tokens on GPUs beside those of another run of it: five prompts at once, one of more than 300 ids, that
end at different times: so steps of decode are padded, their contexts split, and several sizes recorded and replayed.

  same_tokens.py TRIREME MODEL --dtype fp32 --beside cpu|eager|eager_ranks [--log TEXT] [-- LAUNCHER...]

--beside cpu: the CPU. --beside eager: the GPU, one sequence at a time and without CUDA graphs. --beside eager_ranks: the same
ranks without CUDA graphs. --log: what must stand in the log. LAUNCHER: mpirun and its arguments. A token may differ where the other run's two best are nearer than rounding.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

LENGTHS_AND_TOKENS = ((7, 40), (310, 44), (66, 29), (1, 36), (129, 12))
# Of log-probabilities, by dtype.
NEAR = {"fp32": 4e-3}
NEAR_BF16 = 0.3


def write_prompts(folder, vocab):
    path = os.path.join(folder, "prompts.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for number, (length, tokens) in enumerate(LENGTHS_AND_TOKENS):
            ids = [3 + (i * i * 31 + i * 7 + number * 57) % (vocab - 3) for i in range(length)]
            file.write(json.dumps({"prompt_ids": ids, "max_tokens": tokens}) + "\n")
    return path


def generate(command, environment):
    """The answers, and the log."""
    end = subprocess.run(command, env={**os.environ, **environment}, text=True, capture_output=True)
    if end.returncode != 0:
        sys.exit(f"{' '.join(command)}: status {end.returncode}\n{end.stdout}\n{end.stderr}")
    answers = [json.loads(line) for line in end.stdout.splitlines() if line.startswith("{")]
    return sorted(answers, key=lambda answer: answer["index"]), end.stderr


def compare(answers, others, near):
    """How many tokens are the same, and what differs for no reason."""
    same, wrong = 0, []
    for number, (answer, other) in enumerate(zip(answers, others, strict=True)):
        assert len(answer["output_ids"]) == LENGTHS_AND_TOKENS[number][1], f"prompt {number}: {answer}"
        for step, best in enumerate(other["logprobs"]):
            if answer["output_ids"][step] != other["output_ids"][step]:
                if best[0]["logprob"] - best[1]["logprob"] >= near:  # else rounding chose
                    wrong.append(f"prompt {number}, token {step}: {answer['output_ids'][step]}, beside it {best}")
                break  # what follows is of other contexts
            same += 1
    return same, wrong


def main():
    arguments, launcher = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, launcher = arguments[:cut], arguments[cut + 1:]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--beside", choices=("cpu", "eager", "eager_ranks"), required=True)
    parser.add_argument("--log", default="")
    parser.add_argument("--flags", default="", help="more flags of the run on GPUs")
    parser.add_argument("--libraries", help="LD_LIBRARY_PATH of our programs: Python's may not bear it")
    options = parser.parse_args(arguments)
    with open(os.path.join(options.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    ours = {"LD_LIBRARY_PATH": options.libraries} if options.libraries else {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = write_prompts(folder, config.get("padded_vocab_size") or config["vocab_size"])
        ask = [options.program, "generate", "--model", options.model, "--dtype", options.dtype, "--input", prompts,
               "--context", "512", "--ignore_eos", "--json"]
        answers, log = generate(launcher + ask + options.flags.split(), ours)
        other = ask + ["--logprobs", "2"]
        if options.beside == "eager":
            other += ["--max_sequences", "1", "--enforce_eager"]
        elif options.beside == "eager_ranks":
            other = launcher + other + options.flags.split() + ["--enforce_eager"]
        others, other_log = generate(other, {**ours, **({"CUDA_VISIBLE_DEVICES": ""} if options.beside == "cpu" else {})})
    sys.stderr.write(log)
    assert "found no GPU" not in log, "it ran without a GPU"
    assert "not recorded as CUDA graphs" not in log, "no step was replayed"
    assert options.log in log, f"the log does not say {options.log!r}"
    assert ("found no GPU" in other_log) == (options.beside == "cpu"), f"the other run had the wrong device:\n{other_log}"
    same, wrong = compare(answers, others, NEAR.get(options.dtype, NEAR_BF16))
    total = sum(tokens for _, tokens in LENGTHS_AND_TOKENS)
    print(f"{same} of {total} tokens are those of the {options.beside} run, {len(wrong)} of {len(answers)} answers are wrong")
    print("\n".join(wrong))
    if wrong or same < total // 3:
        sys.exit(1)


if __name__ == "__main__":
    main()

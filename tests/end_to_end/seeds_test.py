# SPDX-License-Identifier: Apache-2.0
"""The same seed draws the same text, whatever the split, the batch, the chunk and the threads."""
import json
import random
import tempfile
import unittest

import harness

# flags, mpirun's ranks (1: threads of one process); each also changes batch and chunk.
SAME_BITS = [
    (["--max_sequences", "1"], 1),
    (["--max_batch_tokens", "7", "--max_sequences", "7"], 1),
    (["--pp", "2", "--max_batch_tokens", "16", "--max_sequences", "5"], 1),
    (["--dp", "3", "--max_sequences", "2"], 1),
    (["--threads", "2"], 1),
    (["--pp", "2", "--max_batch_tokens", "33"], 3),
    (["--dp", "2", "--pp", "1"], 3),
]
OTHER_SUMS = [(["--tp", "2"], 1), (["--tp", "3", "--max_batch_tokens", "7"], 1),
              (["--tp", "2", "--pp", "2"], 1), (["--tp", "3"], 4)]
MODELS = [("tiny-llama3", "fp32"), ("tiny-qwen2", "bf16"), ("tiny-gemma2", "fp32"),
          ("tiny-chatglm3-prefix", "bf16")]
PROMPTS = 24
SAMPLINGS = [
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.7, "top_p": 0.95, "top_k": 200},
    {"temperature": 1.0, "min_p": 0.02, "repetition_penalty": 1.3},
    {"temperature": 0.9, "frequency_penalty": 0.7, "presence_penalty": 0.4, "logit_bias": {"17": 3.0}},
    {"temperature": 1.2, "n": 3},
    {"temperature": 1.0, "min_tokens": 9, "ignore_eos": False},
]


def requests(seed_from=0):
    """Prompts of 1 to 40 ids, each with a seed and options of its own."""
    chance = random.Random(11)
    lines = []
    for number in range(PROMPTS):
        ids = [chance.randrange(3, 300) for _ in range(chance.randint(1, 40))]
        lines.append({"prompt_ids": ids, "max_tokens": 24, "ignore_eos": True,
                      "seed": seed_from + number, **SAMPLINGS[number % len(SAMPLINGS)]})
    return lines


def generate(model, lines, *flags, ranks=1):
    """Ids and text of the n answers to each line."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        end = harness.run("generate", "--model", model, "--json", "--input", file.name, *flags,
                          ranks=ranks)
    assert end.status == 0, f"status {end.status}:\n{end.log}"
    answers = [[] for _ in lines]
    for text in end.out.splitlines():
        answer = json.loads(text)
        assert answer["prompt_ids"] == lines[answer["index"]]["prompt_ids"]
        answers[answer["index"]].append((answer["output_ids"], answer["text"]))
    assert [len(some) for some in answers] == [line.get("n", 1) for line in lines]
    return answers


class Seeds(unittest.TestCase):
    def test_pipeline_replicas_batch_chunk_and_threads_change_nothing(self):
        for name, dtype in MODELS:
            model, lines = harness.tiny_model(name), requests()
            base = generate(model, lines, "--dtype", dtype)
            for flags, ranks in SAME_BITS:
                with self.subTest(name, dtype=dtype, flags=flags, ranks=ranks):
                    self.assertEqual(generate(model, lines, "--dtype", dtype, *flags, ranks=ranks), base)
            with self.subTest(name, dtype=dtype, order="reversed"):
                self.assertEqual(generate(model, lines[::-1], "--dtype", dtype)[::-1], base)
            with self.subTest(name, dtype=dtype, order="each alone"):
                for line, expected in zip(lines[:len(SAMPLINGS)], base):
                    self.assertEqual(generate(model, [line], "--dtype", dtype), [expected])

    def test_what_was_preempted_draws_as_if_it_had_not_been(self):
        # Six blocks of 16 positions: three sequences begin, and each comes to need four. Where they
        # are computed again their output stands in the prompt, and still counts as output.
        for name, dtype in MODELS:
            model = harness.tiny_model(name)
            lines = [{**line, "prompt_ids": line["prompt_ids"][:2], "max_tokens": 60} for line in requests()]
            base = generate(model, lines, "--dtype", dtype)
            plan = harness.run("plan", "--model", model, "--dtype", dtype, "--context", "80", "--json")
            self.assertEqual(plan.status, 0, plan.log)
            placement = json.loads(plan.out)
            self.assertEqual(placement["block_size"], 16)
            placement["num_blocks"] = 6
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(placement, file)
                file.flush()
                with self.subTest(name, dtype=dtype):
                    self.assertEqual(generate(model, lines, "--device_map", file.name), base)

    def test_tensor_parallelism_draws_the_same_but_at_the_edge(self):
        # Sums in another order move a logit by some 1e-6, and the edges between the tokens with
        # it: of these 700 draws hardly one in a hundred runs falls between.
        for name, dtype in MODELS:
            if dtype != "fp32":
                continue
            model, lines = harness.tiny_model(name), requests()
            base = generate(model, lines, "--dtype", dtype)
            for flags, ranks in OTHER_SUMS:
                with self.subTest(name, flags=flags, ranks=ranks):
                    other = generate(model, lines, "--dtype", dtype, *flags, ranks=ranks)
                    self.assertLessEqual(sum(a != b for a, b in zip(other, base)), 1)

    def test_another_seed_is_another_text(self):
        for name, dtype in MODELS:
            model = harness.tiny_model(name)
            first, second = (generate(model, requests(seed), "--dtype", dtype) for seed in (0, 1000))
            self.assertGreater(sum(a != b for a, b in zip(first, second)), PROMPTS - 4)
            texts = [answers for answers in first if len(answers) == 3]
            self.assertTrue(texts and all(len(set(map(str, answers))) == 3 for answers in texts))


if __name__ == "__main__":
    harness.main(limit_s=110)

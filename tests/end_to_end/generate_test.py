# SPDX-License-Identifier: Apache-2.0
"""`trireme generate`: the same tokens alone, on threads and on ranks, and those of the reference."""
import json
import math
import tempfile
import unittest
from pathlib import Path

import harness

TOLERANCE = 4e-3  # below such a margin between the best two, rounding may choose
SPLITS = [  # flags, mpirun's ranks (1: threads of one process)
    (["--pp", "2"], 1), (["--pp", "3"], 1), (["--dp", "2"], 1), (["--tp", "2", "--pp", "2"], 1),
    ([], 3), (["--tp", "2"], 3), (["--dp", "2", "--pp", "1"], 3), (["--tp", "3"], 4),
]


def generate(model, *arguments, ranks=1, seconds=60):
    """The JSON lines; stdout has nothing else."""
    end = harness.run("generate", "--model", model, "--json", *arguments, ranks=ranks, seconds=seconds)
    assert end.status == 0, f"status {end.status}:\n{end.log}"
    return [json.loads(line) for line in end.out.splitlines()]


def join(ids):
    return ",".join(map(str, ids))


def tokenizer_size(model):
    tokenizer = json.loads((Path(model) / "tokenizer.json").read_text())
    ids = list(tokenizer["model"]["vocab"].values())
    return max(ids + [token["id"] for token in tokenizer.get("added_tokens", [])]) + 1


class Splits(unittest.TestCase):
    def test_tokens_are_the_same_everywhere(self):
        for name in ("tiny-qwen2", "tiny-glm"):
            model = harness.tiny_model(name)
            prompts = [[1, 2, 3, 4, 5], list(range(7, 47)), [9]]
            flags = [flag for prompt in prompts for flag in ("--prompt_ids", join(prompt))]
            flags += ["--max_tokens", "20", "--ignore_eos", "--dtype", "fp32", "--logprobs", "2"]
            base = generate(model, *flags)
            self.assertEqual([answer["prompt_ids"] for answer in base], prompts)
            for split, ranks in SPLITS:
                with self.subTest(name, split=split, ranks=ranks):
                    answers = generate(model, *flags, *split, ranks=ranks)
                    same_bits = "--tp" not in split
                    for alone, other in zip(base, answers, strict=True):
                        self.compare(alone, other, same_bits)

    def compare(self, alone, other, same_bits):
        self.assertEqual(other["usage"], alone["usage"])
        if same_bits:
            self.assertEqual(other["logprobs"], alone["logprobs"])
            self.assertEqual(other["output_ids"], alone["output_ids"])
            self.assertEqual(other["text"], alone["text"])
            return
        # Other sums in another order: tokens are the same while the best one is clearly the best.
        for step, best in enumerate(alone["logprobs"]):
            self.assertAlmostEqual(other["logprobs"][step][0]["logprob"], best[0]["logprob"], delta=1e-3)
            if best[0]["logprob"] - best[1]["logprob"] < TOLERANCE:
                return
            self.assertEqual(other["output_ids"][step], alone["output_ids"][step], step)

    def test_a_device_map_is_followed(self):
        model = harness.tiny_model("tiny-qwen2")
        flags = ["--prompt_ids", "1,2,3", "--max_tokens", "12", "--ignore_eos"]
        plan = harness.run("plan", "--model", model, "--pp", "2", "--json")
        self.assertEqual(plan.status, 0, plan.log)
        placement = json.loads(plan.out)
        stages = placement["replicas"][0]["stages"]
        self.assertEqual([stage["shards"][0]["rank"] for stage in stages], [1, 2])
        # Another cut than the default, and the ranks the other way round.
        stages[0]["layers"], stages[1]["layers"] = {"begin": 0, "end": 1}, {"begin": 1, "end": 3}
        for stage, rank in zip(stages, (2, 1)):
            stage["shards"] = [{"rank": rank}]
        path = Path(self.enterContext(tempfile.TemporaryDirectory())) / "placement.json"
        path.write_text(json.dumps(placement))
        end = harness.run("generate", "--model", model, "--json", *flags, "--device_map", path, ranks=3)
        self.assertEqual(end.status, 0, end.log)
        self.assertEqual(json.loads(end.out)["output_ids"], generate(model, *flags)[0]["output_ids"])
        loaded = [line for line in end.lines if " ready: read " in line]
        weights = {line.split(" rank ")[1].split()[0]: line for line in loaded}
        self.assertEqual(set(weights), {"1", "2"}, end.log)
        stages[1]["layers"]["begin"] = 2  # a layer that nobody has
        path.write_text(json.dumps(placement))
        end = harness.run("generate", "--model", model, *flags, "--device_map", path, ranks=3)
        self.assertEqual(end.status, 2, end.log)
        self.assertIn("layer", end.last_word)

    def test_maps_that_users_know(self):
        """accelerate's names and a map of HF's modules: two stages, the tokens of one."""
        model = harness.tiny_model("tiny-chatglm3")
        flags = ["--prompt_ids", "1,2,3", "--max_tokens", "12", "--ignore_eos"]
        alone = generate(model, *flags)[0]["output_ids"]
        path = Path(self.enterContext(tempfile.TemporaryDirectory())) / "map.json"
        path.write_text(json.dumps({"transformer.embedding": 1, "transformer.rotary_pos_emb": 1,
                                    "transformer.encoder.layers.0": 1, "transformer": 0}))
        for device_map, ranks in (("balanced", {"1", "2"}), (path, {"1", "2"})):
            end = harness.run("generate", "--model", model, "--json", *flags, "--device_map", device_map, ranks=3)
            self.assertEqual(end.status, 0, end.log)
            self.assertEqual(json.loads(end.out)["output_ids"], alone, device_map)
            loaded = {line.split(" rank ")[1].split()[0] for line in end.lines if " ready: read " in line}
            self.assertEqual(loaded, ranks, end.log)


class Reference(unittest.TestCase):
    def greedy(self, answer, expected, margins, limit):
        """How many tokens were compared: up to a margin within rounding, or an id that is padding."""
        count = 0
        for ours, theirs, margin in zip(answer["output_ids"], expected, margins):
            if margin < TOLERANCE or theirs >= limit:
                break
            self.assertEqual(ours, theirs, f"step {count}")
            count += 1
        return count

    def top(self, best, reference):
        ids, logits, norm = reference["top20_ids"], reference["top20_logits"], reference["logsumexp"]
        for rank, one in enumerate(best):
            self.assertAlmostEqual(one["logprob"], logits[rank] - norm, delta=5e-3)
            if abs(logits[rank] - logits[rank + 1]) > 1e-2 and (
                    rank == 0 or abs(logits[rank] - logits[rank - 1]) > 1e-2):
                self.assertEqual(one["id"], ids[rank])

    def test_small_models(self):
        for name in ("tiny-llama3", "tiny-qwen2", "tiny-glm"):
            reference = json.loads((harness.shared_model(name) / "ref.json").read_text())
            limit = tokenizer_size(harness.tiny_model(name))
            flags = [flag for prompt in reference["prompts"]
                     for flag in ("--prompt_ids", join(prompt["prompt_ids"]))]
            answers = generate(harness.tiny_model(name), *flags, "--max_tokens", "32", "--ignore_eos",
                               "--dtype", "fp32", "--tp", "2")
            compared = sum(
                self.greedy(answer, prompt["greedy32"], prompt["greedy_margin"], limit)
                for answer, prompt in zip(answers, reference["prompts"], strict=True))
            self.assertGreater(compared, 5, name)

    def test_demo_model(self):
        prompts = json.loads((harness.shared_model("smollm2-135m") / "ref.json").read_text())["prompts"]
        flags = []
        for prompt in prompts:
            flags += ["--prompt_ids", join(prompt["prompt_ids"])]
        flags += ["--max_tokens", "32", "--ignore_eos", "--dtype", "fp32", "--logprobs", "5"]
        answers = generate(harness.demo_model(), *flags, ranks=3, seconds=120)
        for answer, prompt in zip(answers, prompts, strict=True):
            reference = prompt["fp32"]
            count = self.greedy(answer, reference["greedy32_no_stop"], reference["margin_top1_top2"],
                                math.inf)
            # 32, or up to the first step at which the reference itself is undecided.
            undecided = [step for step, margin in enumerate(reference["margin_top1_top2"])
                         if margin < TOLERANCE]
            self.assertEqual(count, min([32, *undecided]))
            self.top(answer["logprobs"][0], reference)

    def test_demo_model_chat(self):
        prompts = json.loads((harness.shared_model("smollm2-135m") / "ref.json").read_text())["prompts"]
        chats = [prompt for prompt in prompts if prompt["kind"] == "chat"]
        self.assertTrue(chats)
        flags = [flag for prompt in chats for flag in ("--chat", prompt["user_text"])]
        for answer, prompt in zip(generate(harness.demo_model(), *flags, "--max_tokens", "1"), chats,
                                  strict=True):
            self.assertEqual(answer["prompt_ids"], prompt["prompt_ids"])


class Input(unittest.TestCase):
    def setUp(self):
        self.model = harness.tiny_model()
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def write(self, *lines):
        path = self.folder / "input.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    def test_lines_override_flags(self):
        path = self.write({"prompt_ids": [1, 2, 3], "max_tokens": 4},
                          {"prompt": "hello", "logprobs": 3},
                          "",
                          {"chat": "hi", "temperature": 1.0, "seed": 5, "ignore_eos": True, "max_tokens": 6})
        answers = generate(self.model, "--input", path, "--max_tokens", "9", "--ignore_eos")
        self.assertEqual([answer["index"] for answer in answers], [0, 1, 2])
        self.assertEqual([len(answer["output_ids"]) for answer in answers], [4, 9, 6])
        self.assertEqual(answers[0]["prompt_ids"], [1, 2, 3])
        self.assertNotIn("logprobs", answers[0])
        self.assertEqual([len(best) for best in answers[1]["logprobs"]], [3] * 9)
        for answer in answers:
            self.assertEqual(answer["finish_reason"], "length")
            self.assertEqual(answer["usage"], {"prompt_tokens": len(answer["prompt_ids"]),
                                               "completion_tokens": len(answer["output_ids"])})
            self.assertGreaterEqual(answer["timing"]["total_ms"], answer["timing"]["ttft_ms"])
        again = generate(self.model, "--input", path, "--max_tokens", "9", "--ignore_eos", ranks=3)
        self.assertEqual([answer["output_ids"] for answer in again],
                         [answer["output_ids"] for answer in answers])

    def test_stops(self):
        whole = generate(self.model, "--prompt_ids", "5,6,7", "--max_tokens", "20", "--ignore_eos")[0]
        stop = whole["output_ids"][7]
        answer = generate(self.model, "--prompt_ids", "5,6,7", "--max_tokens", "20", "--ignore_eos",
                          "--stop_token_ids", stop)[0]
        first = whole["output_ids"].index(stop)
        self.assertEqual(answer["output_ids"], whole["output_ids"][:first + 1])
        self.assertEqual(answer["finish_reason"], "stop")
        text = whole["text"][4:6]
        answer = generate(self.model, "--prompt_ids", "5,6,7", "--max_tokens", "20", "--ignore_eos",
                          "--stop", text)[0]
        self.assertEqual(answer["text"], whole["text"][:whole["text"].index(text)])

    def test_a_text_for_people(self):
        whole = generate(self.model, "--prompt", "hello", "--max_tokens", "12")[0]
        end = harness.run("generate", "--model", self.model, "--prompt", "hello", "--max_tokens", "12")
        self.assertEqual((end.status, end.out), (0, whole["text"] + "\n"))

    def test_bad_lines_are_found_before_any_answer(self):
        good = {"prompt": "x", "max_tokens": 1}
        for bad, part in (("{", "input.jsonl:2: found no JSON object"),
                          ({"prompt": "x", "what": 1}, 'there is no key "what"'),
                          ({"prompt": "x", "chat": "y"}, "found 2 of the keys"),
                          ({"prompt": "x", "max_tokens": "many"}, '"max_tokens": found string'),
                          ({"prompt_ids": [1, 4096]}, "found 4096, allowed: 0 to 511"),
                          ({"prompt": "x", "temperature": -1}, "sampling.temperature: found -1"),
                          ({"prompt": "x", "max_tokens": 5000}, "max_tokens: found 5000")):
            with self.subTest(part):
                end = harness.run("generate", "--model", self.model, "--json", "--input",
                                  self.write(good, bad))
                self.assertEqual((end.status, end.out), (2, ""))
                self.assertIn(part, end.last_word)


if __name__ == "__main__":
    harness.main(limit_s=160)

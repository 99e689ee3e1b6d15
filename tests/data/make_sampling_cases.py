# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/sampling_cases.json: run once, `pip install torch transformers`; the result is committed.

Logits, parameters and the ids that came before, with the distribution that the logits processors of the
transformers library make of them, in double and in the order of its generate(). Frequency and presence
penalties, which it does not have, are as OpenAI's API and vLLM define them.
"""
import json
import pathlib
import random

import torch
import transformers
from transformers.generation import logits_process as reference

HERE = pathlib.Path(__file__).parent
ROWS = 40
GAP = 1e-9  # a case whose kept set hangs on rounding shows nothing
INF = float("inf")


def make_logits(rng):
    """Multiples of 1/64: exact as floats and short as text. None stands for -inf."""
    def spread(count, width):
        return [round(rng.gauss(0, width) * 64) / 64 for _ in range(count)]

    peaked = spread(ROWS, 1)
    peaked[17] = 9.0
    holes = spread(ROWS, 2)
    for index in range(0, ROWS, 5):
        holes[index] = (-1e4, -3e38, None)[index // 5 % 3]
    return {
        "normal": spread(ROWS, 2),
        "peaked": peaked,
        "ties": [round(value) / 2 for value in spread(ROWS, 2)],
        "equal": [-3.0] * ROWS,
        "holes": holes,
        "large": [value * 16 for value in spread(ROWS, 2)],
        "negative": [value - 40 for value in spread(ROWS, 2)],
    }


def settings(rng):
    """Each parameter alone, pairs whose order shows, and mixtures of all of them."""
    yield {}
    for temperature in (0, 0.3, 2.5):
        yield {"temperature": temperature}
    for top_k in (1, 3, 11):
        yield {"top_k": top_k}
    for top_p in (1e-6, 0.313, 0.871):
        yield {"top_p": top_p}
    for min_p in (0.0371, 0.293, 1.0):
        yield {"min_p": min_p}
    yield {"top_p": 0.871, "min_p": 0.0937}
    yield {"top_k": 9, "top_p": 0.713}
    yield {"temperature": 1.7, "top_k": 15, "top_p": 0.871, "min_p": 0.0371}
    for repetition in (1.3, 0.7):
        yield {"repetition_penalty": repetition}
    for penalty in (0.625, -0.5):
        yield {"frequency_penalty": penalty}
        yield {"presence_penalty": penalty}
    yield {"repetition_penalty": 1.3, "temperature": 0}
    yield {"logit_bias": {"3": 4.5, "4": -100.0, "38": 2.25}}
    yield {"logit_bias": {"7": 100.0}, "temperature": 0}
    yield {"logit_bias": {"6": 3.5}, "repetition_penalty": 1.5, "presence_penalty": 0.75}
    yield {"banned_ids": [1, 17, 5]}
    for _ in range(4):
        yield {"temperature": rng.choice((0.45, 0.8, 1.0, 1.6)), "top_k": rng.choice((0, 6, 20)),
               "top_p": rng.choice((1.0, 0.623, 0.931)), "min_p": rng.choice((0.0, 0.0193)),
               "repetition_penalty": rng.choice((1.0, 1.15)), "frequency_penalty": rng.choice((0.0, 0.3)),
               "presence_penalty": rng.choice((0.0, 0.45)), "banned_ids": rng.choice(([], [0, 2])),
               "logit_bias": rng.choice(({}, {"11": 1.5, "30": -2.0}))}


def check_gap(values, limit):
    gap = (values - limit).abs().min().item()
    assert gap > GAP, f"{gap} from a boundary: choose another parameter"


def lower_ids_first(scores, kept):
    """Where a boundary cuts equals, torch's sort decides; here those of lower id stay."""
    for value in scores[kept].unique():
        equals = (scores == value).nonzero().flatten().tolist()
        count = kept[equals].sum().item()
        for place, index in enumerate(equals):
            kept[index] = place < count
    return kept


def top_p(scores, p):
    ordered = torch.sort(scores.softmax(-1)[0], descending=True).values
    check_gap(torch.cat([torch.zeros(1), ordered.cumsum(-1)[:-1]]), p)
    kept = reference.TopPLogitsWarper(p)(None, scores)[0] > -INF
    return scores.masked_fill(~lower_ids_first(scores[0], kept)[None], -INF)


def min_p(scores, p):
    ratios = scores.softmax(-1)[0] / scores.softmax(-1).max()
    if p < 1:
        check_gap(ratios, p)
    return reference.MinPLogitsWarper(p)(None, scores)


def distribution(case, logits):
    scores = torch.tensor([[-INF if value is None else value for value in logits]], dtype=torch.float64)
    scores = scores.float().double()
    history = torch.tensor([case["prompt"] + case["output"]])
    if case["logit_bias"]:
        biases = {(int(index),): bias for index, bias in case["logit_bias"].items()}
        scores = reference.SequenceBiasLogitsProcessor(biases)(history, scores)
    if case["repetition_penalty"] != 1:
        scores = reference.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(history, scores)
    counts = torch.bincount(torch.tensor(case["output"]), minlength=ROWS).double()
    scores = scores - case["frequency_penalty"] * counts - case["presence_penalty"] * (counts > 0)
    scores[:, case["banned_ids"]] = -INF
    scores = scores[:, :case["logical"]]
    if case["temperature"] == 0:
        return {int(scores.argmax()): 1.0}
    scores = reference.TemperatureLogitsWarper(float(case["temperature"]))(history, scores)
    if case["top_k"]:
        scores = reference.TopKLogitsWarper(case["top_k"])(history, scores)
    if case["top_p"] < 1:
        scores = top_p(scores, case["top_p"])
    if case["min_p"]:
        scores = min_p(scores, case["min_p"])
    probabilities = scores.softmax(-1)[0].tolist()
    return {index: value for index, value in enumerate(probabilities) if value > 0}


def main():
    rng = random.Random(7)
    shapes = make_logits(rng)
    cases = []
    for name, logits in shapes.items():
        for index, setting in enumerate(settings(rng)):
            case = {"logits": name, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
                    "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
                    "logit_bias": {}, "banned_ids": [], **setting}
            # Rows from `logical` on are padding, which prompts may hold and nothing may draw.
            case["logical"] = ROWS - index % 3
            case["prompt"] = [rng.randrange(ROWS) for _ in range(12)] + [ROWS - 1]
            case["output"] = [rng.randrange(case["logical"]) for _ in range(5)] * 2 + [6]
            case["expected"] = {index: float(f"{value:.9g}") for index, value in distribution(case, logits).items()}
            cases.append(case)
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    text = f'{{"made_with": "{made_with}",\n"logits": {json.dumps(shapes)},\n"cases": [\n{lines}\n]}}\n'
    (HERE / "sampling_cases.json").write_text(text)


if __name__ == "__main__":
    main()

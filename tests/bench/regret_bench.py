#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Regret on real ranks: is the placement that the planner chooses for one stream really among the fastest?

Four CPU ranks are made uneven by cgroup quotas, probed as a job probes itself, and placements drawn by a seed in
strata that are fixed below are run for real: each serves a stream, and the time per token is measured. The chosen
one and the three that were fastest are then measured again, in turns. Prints a line for each placement and the
bars. Needs root, a cgroup controller of CPU time, and a machine with nothing else to do.

    tests/bench/regret_bench.py [--seed 1] [--quotas 0.55,0.4,0.3,0.2] [--tokens 24] [--rounds 9]
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from math import comb
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "end_to_end"))
import harness  # first: it finds the virtual environment
from harness import BINARY, Server, chat_request, mpirun, print_bar

PERIOD_US = 5000  # of a quota: shorter than any step, longer than the scheduler's own
LAYERS = 30       # of SmolLM2-135M
# How many placements of each shape, by number of ranks: pipelines with cuts drawn evenly, and tensor parallel groups.
STRATA = {"PP1": 4, "PP2": 7, "PP3": 5, "PP4": 3, "TP2": 3, "TP3": 1, "TP4": 1, "TP2 x PP2": 2}
FAR_APART = 1.1  # pairs nearer than that are no order
OBJECTIVE = ["--objective", "latency"]
LOAD = ["--context", "1024", "--max_sequences", "1"]


class Quotas:
    """A cgroup for each worker: rank r may use quotas[r - 1] of a core."""

    def __init__(self, quotas):
        self.quotas, self.folders = quotas, []
        v1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists() or Path("/sys/fs/cgroup/cpu/tasks").exists()
        self.top = Path("/sys/fs/cgroup/cpu" if v1 else "/sys/fs/cgroup") / f"trireme-regret-{os.getpid()}"
        self.v1 = v1

    def __enter__(self):
        try:
            if not self.v1:
                Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpu")
            self._make(self.top)
            if not self.v1:
                (self.top / "cgroup.subtree_control").write_text("+cpu")
            for rank, quota in enumerate(self.quotas, 1):
                folder = self._make(self.top / f"rank{rank}")
                if self.v1:
                    (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                    (folder / "cpu.cfs_quota_us").write_text(str(int(quota * PERIOD_US)))
                else:
                    (folder / "cpu.max").write_text(f"{int(quota * PERIOD_US)} {PERIOD_US}")
        except OSError as error:
            self.__exit__()
            harness.skip_script(f"no cgroup with a quota can be made here: {error}")
        return self

    def _make(self, folder):
        folder.mkdir()
        self.folders.append(folder)
        return folder

    def __exit__(self, *_):
        for folder in reversed(self.folders):
            for _ in range(50):  # a process that was just ended is in it for a moment
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)

    def launcher(self):
        """mpirun, and what puts a rank into its cgroup before it becomes the program."""
        enter = (f'r=${{OMPI_COMM_WORLD_RANK:?}}; [ "$r" = 0 ] || echo $$ > {self.top}/rank$r/cgroup.procs; exec "$@"')
        return [*mpirun(len(self.quotas) + 1), "bash", "-c", enter, "rank"]


class Bench:
    def __init__(self, arguments, quotas, folder):
        self.arguments, self.quotas, self.folder = arguments, quotas, folder
        self.model = harness.demo_model()
        self.random = random.Random(arguments.seed)
        self.environment = {"XDG_CACHE_HOME": str(folder)}  # measured once, with these quotas

    def probe(self):
        """The topology as the job itself measures it."""
        done = subprocess.run([*map(str, self.quotas.launcher()), str(BINARY), "probe", "--json"], check=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120,
                              env={**os.environ, **self.environment})
        (self.folder / "topology.json").write_bytes(done.stdout)
        return json.loads(done.stdout)

    def plan(self, *options):
        """A placement with what is predicted of it."""
        done = subprocess.run([str(BINARY), "plan", "--model", str(self.model), "--topology",
                               str(self.folder / "topology.json"), *map(str, options), *OBJECTIVE, "--json"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return json.loads(done.stdout)

    def from_file(self, content):
        """A placement that a file describes; a whole placement says its load itself."""
        path = self.folder / "map.json"
        path.write_text(json.dumps(content))
        return self.plan("--device_map", path, *([] if "replicas" in content else LOAD))

    def pipeline(self, ranks):
        """Stages on these ranks in this order, cut anywhere."""
        cuts = sorted(self.random.sample(range(1, LAYERS), len(ranks) - 1))
        bounds = [0, *cuts, LAYERS]
        where = {"model.embed_tokens": ranks[0] - 1, "model.norm": ranks[-1] - 1, "lm_head": ranks[-1] - 1}
        for stage, rank in enumerate(ranks):
            where.update({f"model.layers.{layer}": rank - 1 for layer in range(bounds[stage], bounds[stage + 1])})
        return self.from_file(where)

    def groups(self, tp, pp, ranks):
        """The planner's shards for tp x pp, on these ranks."""
        placement = self.plan("--tp", tp, "--pp", pp, "--dp", 1, *LOAD)
        others = iter(ranks)
        for stage in placement["replicas"][0]["stages"]:
            for shard in stage["shards"]:
                shard["rank"] = next(others)
        placement.pop("spare_ranks", None)
        return self.from_file(placement)

    def draw(self):
        """(shape, placement) of each stratum; no two alike."""
        count = len(self.quotas.quotas)
        everyone = list(range(1, count + 1))
        drawn, seen = [], set()
        for shape, wanted in STRATA.items():
            tp = int(shape[2]) if shape.startswith("TP") else 1
            pp = int(shape[-1]) if "PP" in shape else 1
            misses = 0
            while wanted and misses < 100:
                ranks = self.random.sample(everyone, tp * pp)
                placement = self.pipeline(ranks) if tp == 1 else self.groups(tp, pp, ranks)
                key = json.dumps(placement["replicas"][0]["stages"], sort_keys=True)
                misses += 1
                if key not in seen:
                    seen.add(key)
                    drawn.append((shape, placement))
                    wanted -= 1
        return drawn

    def measure(self, placement):
        """Milliseconds a token of one stream, of a server that was started for it."""
        path = self.folder / "placement.json"
        path.write_text(json.dumps(placement))
        with Server(self.model, "--device_map", path, launcher=self.quotas.launcher(),
                    environment=self.environment) as server:
            times = []
            request = chat_request("Tell a long story of a ship.", max_tokens=self.arguments.tokens, ignore_eos=True)
            for reply in server.inference.Chat(request, timeout=300):
                times += [time.monotonic()] * len(reply.delta.token_ids)
        return (times[-1] - times[0]) / (len(times) - 1) * 1e3


def predicted(placement):
    return placement["replicas"][0]["predicted"]["tpot_ms"]


def describe(placement):
    stages = placement["replicas"][0]["stages"]
    return ", ".join("+".join(str(shard["rank"]) for shard in stage["shards"]) +
                     f" [{stage['layers'].get('begin', 0)}, {stage['layers']['end']})" for stage in stages)


def kendall(pairs):
    """τ between the orders of (predicted, real), over pairs whose real values are far apart."""
    agree = count = 0
    for (p, r), (q, s) in combinations(pairs, 2):
        if max(r, s) / min(r, s) < FAR_APART:
            continue
        count += 1
        agree += 1 if (p - q) * (r - s) > 0 else -1 if (p - q) * (r - s) < 0 else 0
    return agree / count, count


def significantly_worse(mine, best):
    """Sign test of the pairs, one-sided, at 5 %."""
    worse = sum(a > b for a, b in zip(mine, best))
    n = len(mine)
    return sum(comb(n, k) for k in range(worse, n + 1)) / 2 ** n < 0.05


def report(results, again):
    """again: (index, times) of the chosen placement first."""
    tau, pairs = kendall([(predicted(placement), real) for _, placement, real in results])
    print_bar("Kendall tau between predicted and real order", round(tau, 3), ">= 0.8", tau >= 0.8, pairs=pairs,
              placements=len(results))
    ratios = sorted(predicted(placement) / real for _, placement, real in results)
    print_bar("predicted over real time per token, median", round(statistics.median(ratios), 3), "printed", True,
              least=round(ratios[0], 3), greatest=round(ratios[-1], 3))
    medians = [statistics.median(times) for _, times in again]
    best = min(range(len(again)), key=medians.__getitem__)
    ratio = medians[0] / medians[best]
    noise = statistics.median(
        statistics.median(abs(time - median) for time in times) / median for (_, times), median in zip(again, medians))
    worse = significantly_worse(again[0][1], again[best][1])
    print_bar("chosen placement's time per token over the best one's", round(ratio, 3), "<= 1.05, or no worse by a sign test",
              ratio <= 1.05 or not worse, rounds=len(again[0][1]), significantly_worse=worse,
              median_absolute_deviation=round(noise, 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quotas", default="0.55,0.4,0.3,0.2")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    quotas = [float(part) for part in arguments.quotas.split(",")]
    with tempfile.TemporaryDirectory(prefix="trireme-regret-") as folder, Quotas(quotas) as groups:
        bench = Bench(arguments, groups, Path(folder))
        for rank in bench.probe()["ranks"]:
            speed = rank["device"]["speed"]
            print(f"rank {rank['rank']}: quota {quotas[rank['rank'] - 1]}, "
                  f"{speed['memory_bandwidth_bytes_per_s'] / 1e9:.2f} GB/s, {speed['flops_16bit_per_s'] / 1e9:.1f} GFLOP/s")
        candidates = [("chosen", bench.plan(*LOAD)), *bench.draw()]
        results = []
        for shape, placement in candidates:
            real = bench.measure(placement)
            results.append((shape, placement, real))
            print(f"{shape:10} predicted {predicted(placement):7.1f} ms, real {real:7.1f} ms: {describe(placement)}",
                  flush=True)
        # The chosen one may have been drawn as well.
        fastest = sorted(range(1, len(results)), key=lambda i: results[i][2])[:3]
        again = [(i, []) for i in [0, *fastest]]
        for _ in range(arguments.rounds):
            for i, times in again:
                times.append(bench.measure(results[i][1]))
        report(results, again)


if __name__ == "__main__":
    main()

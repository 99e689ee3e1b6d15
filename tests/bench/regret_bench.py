#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Regret on real ranks: is the placement that the planner chooses for one stream really among the fastest?

Four workers on three hosts. The hosts are network namespaces whose links have a rate and a latency of their own; each
worker has a share of one core. The job probes itself as every job does. Placements drawn by a seed, in strata that
are fixed in this file, are run for real: each serves a stream, and the time per token is measured. Then the chosen one and
the three that were fastest are measured again, in turns.

    tests/bench/regret_bench.py                              # 10 to 15 minutes of a quiet machine
    tests/bench/regret_bench.py --rounds 1 --tokens 4        # a look
    tests/bench/regret_bench.py --seed 2 --keep /tmp/regret  # other placements; what was found stays in a folder

Prints what the probe found, a line for each placement, and the bars:
  Kendall tau      between predicted and real order of the drawn ones, over pairs whose real times are more than 10 % apart
  predicted/real   1 is a perfect prediction; the same factor for all changes no order
  chosen/best      of the medians; or the chosen one is no worse by a sign test over the rounds
  noise            how far one measurement of a placement is from the median of its rounds

Needs root, network namespaces, a cgroup controller of CPU time, real-time priority, two cores, 8 GB of memory.
Builds beside it are kept from its cores, but not from its caches and memory: a busy machine costs accuracy.
"""
import argparse
import contextlib
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
from harness import BINARY, ROOT, Job, Server, ids_request, print_bar
from hosts import Hosts
from multihost_test import on_hosts

# Rate in Mbit/s and latency in ms of each host's link; two hosts are half of the sum of theirs apart.
LINKS = {"h1": (1000, 1), "h2": (300, 8), "h3": (60, 20)}
# Host and share of a core of each worker, by rank from 1. Rank 0, which coordinates, is on the first host.
WORKERS = [("h1", 0.5), ("h1", 0.5), ("h2", 0.35), ("h3", 0.2)]
# Of random weights. A layer must take far longer than the millisecond that a worker which has waited has saved up.
MODEL = {"layers": 12, "hidden": 2048, "ffn": 5632, "heads": 16, "groups": 2, "vocab": 4096}
# How many placements of each shape, on ranks drawn evenly; cuts between stages are drawn evenly too.
STRATA = {"PP1": 4, "PP2": 7, "PP3": 5, "PP4": 3, "TP2": 4, "TP3": 2, "TP4": 1, "TP2 x PP2": 3}
FAR_APART = 1.1  # pairs nearer than that are no order
OBJECTIVE = ["--objective", "latency"]
LOAD = ["--context", "256", "--max_sequences", "1"]
PROMPT = [5, 6, 7, 8]


class Shares:
    """A cgroup for each worker: rank r may use shares[r - 1] of a core, and keeps to its core."""

    QUOTA_US = 1000  # the least that the kernel takes, so that whoever has waited has saved up little
    # A quota is looked at when something happens on a core, without this only at the tick, which may be 4 ms away.
    BEAT = "import time\nwhile True: time.sleep(2.5e-4)"

    def __init__(self, shares):
        self.shares, self.folders, self.beats = shares, [], []
        self.cores = sorted(os.sched_getaffinity(0))
        self.v1 = Path("/sys/fs/cgroup/cpu/tasks").exists()
        self.top = Path("/sys/fs/cgroup/cpu" if self.v1 else "/sys/fs/cgroup") / f"trireme-regret-{os.getpid()}"

    def __enter__(self):
        try:
            self._start_beats()
            if not self.v1:
                (self.top.parent / "cgroup.subtree_control").write_text("+cpu")
            self._make(self.top, weight=100)
            if not self.v1:
                (self.top / "cgroup.subtree_control").write_text("+cpu")
            for rank, share in enumerate(self.shares, 1):
                folder = self._make(self.top / f"rank{rank}", weight=1)
                period = int(self.QUOTA_US / share)
                if self.v1:
                    (folder / "cpu.cfs_period_us").write_text(str(period))
                    (folder / "cpu.cfs_quota_us").write_text(str(self.QUOTA_US))
                else:
                    (folder / "cpu.max").write_text(f"{self.QUOTA_US} {period}")
            # This script and all that it starts, before it becomes a worker.
            rest = self._make(self.top / "rest", weight=4)
            (rest / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            self.__exit__()
            harness.skip_script(f"no worker can be given a share of a core here: {error}")
        return self

    def _make(self, folder, weight):
        """weight: against what else runs beside it; 1 is what everybody has."""
        folder.mkdir()
        self.folders.append(folder)
        name, usual = ("cpu.shares", 1024) if self.v1 else ("cpu.weight", 100)
        (folder / name).write_text(str(weight * usual))
        return folder

    def _start_beats(self):
        for core in self.cores:
            self.beats.append(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "taskset", "-c", str(core), "chrt",
                                                "--fifo", "20", sys.executable, "-c", self.BEAT]))
        time.sleep(0.2)
        if any(beat.poll() is not None for beat in self.beats):
            raise OSError("chrt cannot start a program at real-time priority")

    def __exit__(self, *_):
        for beat in self.beats:
            beat.kill()
            beat.wait()
        if self.folders:
            with contextlib.suppress(OSError):
                (self.top.parent / "cgroup.procs").write_text(str(os.getpid()))
        for folder in reversed(self.folders):
            for _ in range(50):  # a process that was just ended is in it for a moment
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.1)

    def enter(self):
        """What puts a rank into its cgroup and on its core before it becomes the program."""
        cores = " ".join(str(self.cores[i % len(self.cores)]) for i in range(len(self.shares)))
        return ["bash", "-c", f'r=${{OMPI_COMM_WORLD_RANK:?}} cores=(0 {cores}); if [ "$r" != 0 ]; then '
                f'echo $$ > {self.top}/rank$r/cgroup.procs; taskset -pc ${{cores[r]}} $$ > /dev/null; fi; exec "$@"', "rank"]


class Bench:
    def __init__(self, arguments, launcher, bed, folder):
        self.arguments, self.launcher, self.bed, self.folder = arguments, launcher, bed, folder
        self.model = folder / "model"
        self.random = random.Random(arguments.seed)
        self.environment = {"XDG_CACHE_HOME": str(folder)}

    def make_model(self):
        if (self.model / "tokenizer.model").exists():  # written last; kept by an earlier run
            return
        sizes = [word for name, value in MODEL.items() for word in (f"--{name}", str(value))]
        tokenizer = Path(harness.tiny_model("tiny-chatglm3")) / "tokenizer.model"
        subprocess.run([sys.executable, ROOT / "tests/support/make_chatglm3_random.py", self.model, *sizes, "--tokenizer",
                        tokenizer], check=True, stdout=subprocess.DEVNULL)

    def probe(self):
        """The topology as the job itself measures it; and one in which shapes may be any, for their shards."""
        with Job([*self.launcher, BINARY, "probe", "--json"], self.environment) as job:
            assert job.wait(120) == 0, job.log()
            topology, log = json.loads(job.out()), job.log()
        (self.folder / "topology.json").write_text(json.dumps(topology))
        together = {"ranks": [{**rank, "host": "one"} for rank in topology["ranks"]]}
        (self.folder / "together.json").write_text(json.dumps(together))
        print("\n".join(line for line in log.splitlines() if line.startswith(("  ", "Links"))))
        for rank, (host, share) in zip(topology["ranks"], WORKERS):
            speed = rank["device"]["speed"]
            bandwidth = speed["memory_bandwidth_bytes_per_s"] / 1e9
            print(f"rank {rank['rank']} on {host}: {share} of a core, {bandwidth:.2f} GB/s ({bandwidth / share:.1f} of a "
                  f"whole one), {speed['flops_16bit_per_s'] / 1e9:.1f} GFLOP/s")

    def plan(self, *options, topology="topology.json"):
        """A placement with what is predicted of it."""
        done = subprocess.run([BINARY, "plan", "--model", self.model, "--topology", self.folder / topology,
                               *map(str, options), *OBJECTIVE, "--json"], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    def place(self, tp, pp, ranks, cuts):
        """The planner's shards for tp x pp, on these ranks, with these layers."""
        placement = self.plan("--tp", tp, "--pp", pp, "--dp", 1, *LOAD, topology="together.json")
        placement.pop("spare_ranks", None)
        others, bounds = iter(ranks), [0, *cuts, MODEL["layers"]]
        for index, stage in enumerate(placement["replicas"][0]["stages"]):
            stage["layers"] = {"begin": bounds[index], "end": bounds[index + 1]}
            for shard in stage["shards"]:
                shard["rank"] = next(others)
        path = self.folder / "map.json"
        path.write_text(json.dumps(placement))
        return self.plan("--device_map", path)

    def draw(self):
        """(shape, placement) of each stratum; no two alike."""
        everyone = list(range(1, len(WORKERS) + 1))
        drawn, seen = [], set()
        for shape, wanted in STRATA.items():
            tp = int(shape[2]) if shape.startswith("TP") else 1
            pp = int(shape[-1]) if "PP" in shape else 1
            misses = 0
            while wanted and misses < 100:
                ranks = self.random.sample(everyone, tp * pp)
                cuts = sorted(self.random.sample(range(1, MODEL["layers"]), pp - 1))
                key = (tuple(tuple(sorted(ranks[i:i + tp])) for i in range(0, tp * pp, tp)), tuple(cuts))
                misses += 1
                if key not in seen:
                    seen.add(key)
                    drawn.append((shape, self.place(tp, pp, ranks, cuts)))
                    wanted -= 1
        return drawn

    def measure(self, placement):
        """Milliseconds a token of one stream, of a server that was started for it."""
        path = self.folder / "placement.json"
        path.write_text(json.dumps(placement))
        with Server(self.model, "--device_map", path, launcher=self.launcher, environment=self.environment,
                    listen=f"unix:{self.bed.folder}/client") as server:
            times = []
            request = ids_request(PROMPT, max_tokens=self.arguments.tokens, ignore_eos=True)
            for reply in server.inference.Generate(request, timeout=300):
                times += [time.monotonic()] * len(reply.delta.token_ids)
        return statistics.median(b - a for a, b in zip(times, times[1:])) * 1e3

    def run(self):
        """(shape, placement, real time) of all, and (index, times) of those measured again, the chosen one first."""
        results = []
        for shape, placement in [("chosen", self.plan(*LOAD)), *self.draw()]:
            real = self.measure(placement)
            results.append((shape, placement, real))
            print(f"{shape:10} predicted {predicted(placement):7.1f} ms, real {real:7.1f} ms: {describe(placement)}",
                  flush=True)
        chosen = describe(results[0][1])  # it may have been drawn as well
        others = [i for i, (_, placement, _) in enumerate(results) if describe(placement) != chosen]
        fastest = sorted(others, key=lambda i: results[i][2])[:3]
        again = [(i, []) for i in [0, *fastest]]
        for _ in range(self.arguments.rounds):
            for i, times in again:
                times.append(self.measure(results[i][1]))
        (self.folder / "results.json").write_text(json.dumps({"results": results, "again": again}))
        return results, again


def predicted(placement):
    return placement["replicas"][0]["predicted"]["tpot_ms"]


def describe(placement):
    """Ranks and layers of the stages, ranks of a group in any order."""
    stages = placement["replicas"][0]["stages"]
    return ", ".join("+".join(sorted(str(shard["rank"]) for shard in stage["shards"])) +
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
    drawn = [(predicted(placement), real) for shape, placement, real in results if shape != "chosen"]
    tau, pairs = kendall(drawn)
    print_bar("Kendall tau between predicted and real order", round(tau, 3), ">= 0.8", tau >= 0.8, pairs=pairs,
              placements=len(drawn))
    ratios = sorted(p / real for p, real in drawn)
    print_bar("predicted over real time per token, median", round(statistics.median(ratios), 3), "printed", True,
              least=round(ratios[0], 3), greatest=round(ratios[-1], 3))
    medians = [statistics.median(times) for _, times in again]
    best = min(range(len(again)), key=medians.__getitem__)
    ratio = medians[0] / medians[best]
    worse = significantly_worse(again[0][1], again[best][1])
    print_bar("chosen placement's time per token over the best one's", round(ratio, 3),
              "<= 1.05, or no worse by a sign test", ratio <= 1.05 or not worse, rounds=len(again[0][1]),
              significantly_worse=worse, medians_ms=[round(median, 1) for median in medians],
              placements=[describe(results[i][1]) for i, _ in again])
    off = [abs(time / median - 1) for (_, times), median in zip(again, medians) for time in times]
    print_bar("noise: one measurement off the median of its placement, median", round(statistics.median(off), 3), "printed",
              True, greatest=round(max(off), 3), load=round(os.getloadavg()[0], 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the drawn placements (default 1)")
    parser.add_argument("--tokens", type=int, default=8, help="of a stream (default 8)")
    parser.add_argument("--rounds", type=int, default=9, help="in which the best ones are measured again (default 9)")
    parser.add_argument("--keep", type=Path, help="a folder for the model, the topology and the results, to stay")
    arguments = parser.parse_args()
    if arguments.tokens < 3 or arguments.rounds < 1:
        parser.error("needed are 3 tokens and 1 round at least")
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trireme-regret-")))
        folder.mkdir(parents=True, exist_ok=True)
        shares = stack.enter_context(Shares([share for _, share in WORKERS]))
        bed = stack.enter_context(Hosts(len(LINKS), latency_ms=1))
        for host, (rate_mbit, latency_ms) in LINKS.items():
            bed.set_link(host, rate_mbit, latency_ms)
        places = [bed.names[0], *(host for host, _ in WORKERS)]  # MPI numbers ranks host by host, as WORKERS is
        launcher = [*on_hosts(bed, [places.count(host) for host in bed.names]), *shares.enter()]
        bench = Bench(arguments, launcher, bed, folder)
        bench.make_model()
        bench.probe()
        report(*bench.run())


if __name__ == "__main__":
    main()

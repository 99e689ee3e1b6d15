# SPDX-License-Identifier: Apache-2.0
"""SIGKILL and SIGSTOP to every rank of a job in each of its phases, under launch/trireme-run --relaunch. However
it is hurt: found in time, the right rank named, every stream ended with its status, nothing left running, and
the next job answers. A sample of the runs; --all: each rank, each signal, each phase."""
import datetime
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import harness  # first: it finds the virtual environment
import grpc
from harness import BINARY, Job, Stream, chat_request, ids_request, ranks_of, read, trireme_run

ALL = "--all" in sys.argv
if ALL:
    sys.argv.remove("--all")

RANKS = 5  # a coordinator; two stages of two
PHASES = ("bootstrap", "load", "prefill", "decode", "idle", "drain")
SAMPLE = ((signal.SIGKILL, 1, "prefill"), (signal.SIGSTOP, 2, "decode"), (signal.SIGKILL, 0, "decode"),
          (signal.SIGKILL, 4, "load"), (signal.SIGSTOP, 0, "idle"), (signal.SIGKILL, 3, "drain"))
BARS = {"death seen by the connection's end, ms": 50, "stopped rank suspected, s": 2.5,
        "relaunch answers after a death, s": 5}
# A machine that is busy with something else misses the bars, which are printed; more than this is a fault.
SLACK = 10
DEAD_AFTER_S = 4
PROMPT = [1] + list(range(1000, 7000))  # seconds of prefill
measured = {bar: [] for bar in BARS}


class Service(Job):
    """trireme-run serve, from before it is ready to after it was lost."""

    def __init__(self, model):
        self.files = Path(tempfile.mkdtemp(prefix="trireme-chaos-"))
        super().__init__([*trireme_run("--relaunch", "1"), BINARY, "serve", "--model", model, "--tp", "2", "--pp", "2",
                          "--listen", "127.0.0.1:0", "--address_file", self.files / "address",
                          "--status_file", self.files / "status", "--dead_after", f"{DEAD_AFTER_S}s"])

    def state(self):
        try:
            return json.loads((self.files / "status").read_text())["state"]
        except (OSError, ValueError):
            return None

    def wait_ready(self, times, seconds=60):
        def ready():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log()}"
            return self.log().count("listening on ") == times and (self.files / "address").exists()
        try:
            harness.wait_until(ready, seconds, f"the service is ready, time {times}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        channel = grpc.insecure_channel((self.files / "address").read_text().strip(),
                                        options=[("grpc.use_local_subchannel_pool", 1)])
        rpc = harness.api().rpc
        self.inference, self.cluster = rpc.InferenceStub(channel), rpc.ClusterStub(channel)

    def wait_line(self, pattern, seconds):
        """The line, and when it was seen."""
        def line():
            return next((line for line in self.log_lines() if re.search(pattern, line)), None)
        try:
            return harness.wait_until(line, seconds, f"a line {pattern}"), time.time()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None


class Suspicion(threading.Thread):
    """When WatchHealth first says that a rank is suspected."""

    def __init__(self, service, rank):
        super().__init__(daemon=True)
        self.rank, self.at = rank, None
        self.call = service.cluster.WatchHealth(harness.api().pb.WatchHealthRequest())
        self.start()

    def run(self):
        try:
            for health in self.call:
                if any(rank.rank == self.rank and rank.state == "suspected" for rank in health.ranks):
                    self.at = self.at or time.time()
        except grpc.RpcError:
            pass


def logged_at(line):
    """The time that a line of our log bears."""
    clock = datetime.time.fromisoformat(line.split()[1])
    return datetime.datetime.combine(datetime.date.today(), clock).timestamp()


def reach(service, rank, phase):
    """Brings the service to the phase; the streams that are open then, and the rank's pid."""
    if phase == "bootstrap":
        return [], harness.wait_until(lambda: ranks_of(service.members()).get(rank), 20, "the rank is there")
    if phase == "load":
        harness.wait_until(lambda: service.state() == "loading", 40, "it loads")
        return [], service.ranks()[rank]
    service.wait_ready(1)
    pid = service.ranks()[rank]
    streams = []
    if phase == "prefill":
        streams = [Stream(service.inference.Generate(ids_request(PROMPT, max_tokens=10, ignore_eos=True)))]
        load = harness.api().pb.GetLoadRequest()
        harness.wait_until(lambda: service.cluster.GetLoad(load, timeout=5).running == 1, 10, "it runs")
        assert not streams[0].begun(), "the prefill was over at once"
    elif phase in ("decode", "drain"):
        request = chat_request("Tell a very long story.", max_tokens=4000, ignore_eos=True)
        streams = [Stream(service.inference.Chat(request)).wait_begun() for _ in range(2)]
    if phase == "drain":
        service.process.send_signal(signal.SIGTERM)
        service.wait_line("no more requests", 10)
    return streams, pid


class Chaos(unittest.TestCase):
    def expect(self, bar, value):
        measured[bar].append(value)
        self.assertLessEqual(value, BARS[bar] * SLACK)

    def found(self, service, number, rank, phase, watch, hurt_at):
        """That it was found, in time, and who is named."""
        early = phase in ("bootstrap", "load")
        if phase == "bootstrap":  # MPI hangs; where it does not, rank 0 says it
            service.wait_line(rf"\brank {rank}\b.*(died|stopped|lost|ended|silent|missing|heard|word)", 45)
            return
        if rank == 0 and number == signal.SIGSTOP:
            _, at = service.wait_line(r"rank 0 .* is stopped", 45)
            if not early:
                self.expect("stopped rank suspected, s", at - hurt_at)
            return
        if rank == 0:
            if phase != "drain":
                service.wait_line("rank 0 .*was lost|relaunch 1", 30)
            return
        if number == signal.SIGSTOP and watch:
            harness.wait_until(lambda: watch.at, 30, "the stopped rank is suspected")
            self.expect("stopped rank suspected, s", watch.at - hurt_at)
        line, _ = service.wait_line(rf"\brank {rank}\b.*(lost|died|ended|silent|heard|word)", 45)
        if not early:
            line, _ = service.wait_line("first failure: ", 10)
            self.assertRegex(line, rf"first failure: .*\brank {rank} \(")
            self.assertEqual(service.log().count("first failure: "), 1, service.log())
            if number == signal.SIGKILL:
                self.expect("death seen by the connection's end, ms", max(0, logged_at(line) - hurt_at) * 1e3)

    def run_case(self, model, number, rank, phase):
        with Service(model) as service:
            streams, pid = reach(service, rank, phase)
            watch = Suspicion(service, rank) if number == signal.SIGSTOP and rank and phase not in PHASES[:2] else None
            if watch:
                time.sleep(0.2)  # it has its first word
            hurt_at = time.time()
            os.kill(pid, number)
            self.found(service, number, rank, phase, watch, hurt_at)
            for stream in streams:
                stream.wait_end(40)
                self.assertIsNotNone(stream.error, "a stream ended well without its rank")
                self.assertEqual(stream.error.code().name, "UNAVAILABLE")
                if rank:
                    self.assertRegex(stream.error.details(), rf"\brank {rank}\b")
            if phase == "drain":  # the job was to end anyway
                self.assertEqual(service.wait(60), 1, service.log())
                return
            ready = 1 if phase in ("bootstrap", "load") else 2
            service.wait_ready(ready, 90)
            self.assertIn("Paris", read(service.inference.Chat(
                chat_request("What is the capital of France?", max_tokens=8), timeout=60)).text)
            if number == signal.SIGKILL and phase != "bootstrap":
                took = time.time() - hurt_at
                print(f"{number.name} rank {rank} {phase}: answers again after {took:.2f} s", flush=True)
                self.expect("relaunch answers after a death, s", took)
            self.assertEqual(service.log().count("relaunch 1 of 1 in"), 1, service.log())
            service.process.send_signal(signal.SIGTERM)
            self.assertEqual(service.wait(60), 0, service.log())

    def test_runs(self):
        model = harness.demo_model()
        runs = SAMPLE
        if ALL:
            runs = [(number, rank, phase) for phase in PHASES for number in (signal.SIGKILL, signal.SIGSTOP)
                    for rank in range(RANKS)]
        for number, rank, phase in runs:
            begun = time.monotonic()
            with self.subTest(signal=number.name, rank=rank, phase=phase):
                self.run_case(model, number, rank, phase)
                if ALL:
                    print(number.name, "rank", rank, phase, f"ok, {time.monotonic() - begun:.1f} s", flush=True)

    @classmethod
    def tearDownClass(cls):
        for bar, values in measured.items():
            if values:
                values = sorted(round(value, 2) for value in values)
                harness.print_bar(bar, values[-1], f"<= {BARS[bar]}", values[-1] <= BARS[bar], runs=len(values),
                                  median=values[len(values) // 2])


if __name__ == "__main__":
    harness.main(limit_s=3500 if ALL else 200)

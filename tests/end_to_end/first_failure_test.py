# SPDX-License-Identifier: Apache-2.0
"""Who failed first, doing what, since when: one line names the right rank, whether it was killed or stopped, in
every phase of a job once it is formed (before that: chaos_test); what follows from it is marked so. Death is
seen by the end of a connection within milliseconds, silence after --dead_after."""
import datetime
import json
import os
import re
import signal
import socket
import tempfile
import time
import unittest
from pathlib import Path

import harness
from harness import Server, Stream, chat_request, ids_request

HOST = socket.gethostname()
DEAD_AFTER_S = 3
SEEN_MS = 50        # from SIGKILL to the line, by the end of the connection
SEEN_SLACK_MS = 250  # of a busy machine
GONE_S = 15
seen_ms = []


def time_of(line):
    """Of a line of the log, as seconds since the epoch."""
    clock = re.search(r" (\d\d:\d\d:\d\d\.\d{3}) ", line).group(1)
    now = datetime.datetime.now()
    when = datetime.datetime.combine(now.date(), datetime.time.fromisoformat(clock))
    if when > now + datetime.timedelta(hours=1):  # it was before midnight
        when -= datetime.timedelta(days=1)
    return when.timestamp()


class Phase(unittest.TestCase):
    """In each: go to the phase, strike a rank, see the line."""

    @classmethod
    def tearDownClass(cls):
        if seen_ms:
            worst = max(seen_ms)
            harness.print_bar("death seen by the connection's end, ms", round(worst, 1), f"<= {SEEN_MS}",
                              worst <= SEEN_MS, deaths=len(seen_ms),
                              median=round(sorted(seen_ms)[len(seen_ms) // 2], 1))

    def start(self, model, *options, ready=True):
        self.folder = tempfile.TemporaryDirectory(prefix="trireme-status-")
        self.addCleanup(self.folder.cleanup)
        self.status_file = Path(self.folder.name) / "status.json"
        return Server(model, "--pp", "2", "--dead_after", f"{DEAD_AFTER_S}s", "--status_file", self.status_file,
                      *options, ranks=3, recovery=True, ready=ready)

    def status(self):
        try:
            return json.loads(self.status_file.read_text())
        except FileNotFoundError:
            return {"state": "absent"}

    def strike(self, server, rank, number):
        self.victim = server.ranks()[rank]
        at = time.time()
        os.kill(self.victim, number)
        return at

    def check(self, server, rank, number, at, doing=""):
        """The line of the failed rank, what is beside it, and the end."""
        harness.wait_until(lambda: self.status()["state"] == "ended", GONE_S + DEAD_AFTER_S,
                           "rank 0 says that it has ended; its stderr:\n" + server.log())
        if number == signal.SIGSTOP:
            # mpirun 4.1 waits for it with --enable-recovery; trireme-run would end it now.
            os.kill(self.victim, signal.SIGKILL)
        status = server.wait(GONE_S)
        log = server.log()
        lines = [line for line in server.log_lines() if "first failure: " in line]
        self.assertEqual(len(lines), 1, log)
        stage = server.stage_ranks().index(rank)
        self.assertRegex(lines[0],
                         rf"first failure: rank {rank} \(host {re.escape(HOST)}, stage {stage}\) .*{doing}")
        # No other rank's trouble goes without the mark.
        for line in server.log_lines():
            if re.match(r"[WE] ", line) and line != lines[0]:
                self.assertRegex(line, rf"a consequence|rank {rank} \(.*\) is suspected", log)
        self.assertIn(f"rank {rank} ", server.last_word())
        end = self.status()
        self.assertEqual((end["state"], end["exit_status"]), ("ended", 1), end)
        self.assertIn(f"rank {rank} ", end["reason"])
        self.assertIn(f"first failure: rank {rank} ", end["first_failure"])
        late = time_of(lines[0]) - at
        if number == signal.SIGKILL:
            seen_ms.append(late * 1e3)
            self.assertLess(late * 1e3, SEEN_SLACK_MS)
        else:
            self.assertIn("no heartbeat", lines[0])
            self.assertLess(late, DEAD_AFTER_S + 1.5)
            self.assertGreater(late, DEAD_AFTER_S - 0.5)
        return status

    def both(self, act):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for rank in (1, 2) if number == signal.SIGKILL else (2,):
                with self.subTest(signal=number.name, rank=rank):
                    act(rank, number)

    def test_load(self):
        def act(rank, number):
            with self.start(harness.demo_model(), "--dtype", "fp32", ready=False) as server:
                harness.wait_until(lambda: self.status()["state"] == "loading", 20, "it loads")
                at = self.strike(server, rank, number)
                self.check(server, rank, number, at, "(load|idle|not heard)")
        self.both(act)

    def test_prefill(self):
        def act(rank, number):
            with self.start(harness.demo_model(), "--max_batch_tokens", "8192", "--threads", "1") as server:
                ids = [5 + index % 1000 for index in range(8000)]
                stream = Stream(server.inference.Generate(ids_request(ids, max_tokens=1)))
                harness.wait_until(lambda: server.load().running == 1, 5, "it runs")
                time.sleep(0.5)  # a heartbeat tells that it is in it
                at = self.strike(server, rank, number)
                self.assertEqual(stream.wait_end(20).error.code().name, "UNAVAILABLE")
                first = server.stage_ranks()[0]
                doing = "micro-batch 1, layer" if rank == first else f"receive activations, waiting for rank {first}"
                self.check(server, rank, number, at, doing)
        self.both(act)

    def test_decode(self):
        def act(rank, number):
            with self.start(harness.demo_model()) as server:
                stream = Stream(server.inference.Chat(
                    chat_request("Tell a very long story.", max_tokens=4000, ignore_eos=True))).wait_begun()
                time.sleep(0.3)
                at = self.strike(server, rank, number)
                error = stream.wait_end(20).error
                self.assertEqual(error.code().name, "UNAVAILABLE")
                stage = server.stage_ranks().index(rank)
                self.assertIn(f"rank {rank} (host {HOST}, stage {stage}) is lost", error.details())
                self.check(server, rank, number, at, "it was")
                self.assertIn("UNAVAILABLE, a consequence", server.log())
        self.both(act)

    def test_idle(self):
        def act(rank, number):
            with self.start(harness.tiny_model()) as server:
                time.sleep(0.5)
                at = self.strike(server, rank, number)
                self.check(server, rank, number, at, "it was idle")
        self.both(act)

    def test_drain(self):
        def act(rank, number):
            with self.start(harness.demo_model()) as server:
                stream = Stream(server.inference.Chat(
                    chat_request("Tell a very long story.", max_tokens=4000, ignore_eos=True))).wait_begun()
                os.kill(server.ranks()[0], signal.SIGTERM)
                harness.wait_until(lambda: self.status()["state"] == "draining", 5, "it drains")
                at = self.strike(server, rank, number)
                self.assertEqual(stream.wait_end(20).error.code().name, "UNAVAILABLE")
                self.check(server, rank, number, at, "it was")
        self.both(act)


if __name__ == "__main__":
    harness.main(limit_s=280)

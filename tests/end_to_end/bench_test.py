# SPDX-License-Identifier: Apache-2.0
"""`trireme bench` against a server: its counts are the server's, its times those that another client sees, and
what goes wrong is said."""
import json
import os
import re
import signal
import statistics
import subprocess
import time
import unittest

import harness
from harness import BINARY, Server, ids_request

SLACK = 1.5  # between the medians of two clients on a busy machine


def start(server, *flags):
    return subprocess.Popen([BINARY, "bench", "--server", server.address, *map(str, flags)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def bench(server, *flags, status=0):
    process = start(server, *flags)
    try:
        out, log = process.communicate(timeout=60 * harness.PATIENCE)
    finally:
        process.kill()
    assert process.returncode == status, f"{process.returncode}\n{out}\n{log}"
    return out, log


def sizes(requests, input_len, output_len):
    return "--requests", requests, "--input_len", input_len, "--output_len", output_len


class Bench(unittest.TestCase):
    def start(self, *arguments):
        process = start(*arguments)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)  # before it
        return process

    def test_counts_and_rates(self):
        with Server(harness.tiny_model(), ranks=1) as server:
            before = server.load()
            out, _ = bench(server, *sizes(40, 30, 20), "--concurrency", 4, "--e2el_max", "1min",
                           "--json")
            report = json.loads(out)  # one object and nothing else
            after = server.load()
            self.assertEqual([report[key] for key in ("sent", "answered", "refused", "failed")], [40, 40, 0, 0])
            self.assertEqual((report["prompt_tokens"], report["output_tokens"]), (40 * 30, 40 * 20))
            # With the one that goes ahead.
            self.assertEqual(after.prompt_tokens - before.prompt_tokens, 41 * 30)
            self.assertEqual(after.output_tokens - before.output_tokens, 41 * 20)
            seconds = report["duration_s"]
            self.assertAlmostEqual(report["request_throughput"], 40 / seconds, delta=1e-6 / seconds)
            self.assertAlmostEqual(report["output_throughput"], 800 / seconds, delta=1e-6 / seconds)
            self.assertAlmostEqual(report["total_throughput"], 2000 / seconds, delta=1e-6 / seconds)
            self.assertAlmostEqual(report["goodput"], 40 / seconds, delta=1e-6 / seconds)
            for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
                spread = report[name]
                self.assertTrue(0 < spread["median"] <= spread["p90"] <= spread["p95"] <= spread["p99"], report)
            # Four at once, each begun when another has ended: their times fill four times the duration.
            self.assertAlmostEqual(report["e2el_ms"]["mean"] * 40 / 1e3 / seconds, 4, delta=0.4)

    def test_a_rate_is_kept(self):
        with Server(harness.tiny_model(), ranks=1) as server:
            report = json.loads(bench(server, *sizes(100, 8, 4), "--rate", 50, "--json")[0])
            self.assertEqual(report["answered"], 100)
            # 99 gaps of 20 ms: the seed's own sum, whatever the machine does beside.
            self.assertGreater(report["duration_s"], 1.2)
            self.assertLess(report["duration_s"], 4)
            tables, _ = bench(server, *sizes(10, 8, 4), "--rate", 50, "--burstiness", 0.5, "--ttft_max", "1ms")
            self.assertRegex(tables, r"10 of 10 requests answered, 8 \+ 4 tokens each, 50 a second, burstiness 0.5, in")
            self.assertRegex(tables, r"goodput, requests/s\n")
            for name in ("TTFT", "TPOT", "ITL", "E2EL"):
                self.assertRegex(tables, rf"(?m)^  {name} +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$")

    def test_times_are_those_of_another_client(self):
        with Server(harness.demo_model(), ranks=1) as server:
            ids = [200 + number for number in range(100)]

            def other():
                begin = time.monotonic()
                times = [time.monotonic() for reply in server.inference.Generate(
                    ids_request(ids, max_tokens=8, ignore_eos=True), timeout=60) if reply.HasField("delta")]
                return 1e3 * (times[0] - begin), 1e3 * (times[-1] - times[0]) / 7

            ours, theirs = [], []
            for _ in range(3):  # in turns
                out, _ = bench(server, *sizes(3, 100, 8), "--concurrency", 1, "--json")
                report = json.loads(out)
                ours.append((report["ttft_ms"]["median"], report["tpot_ms"]["median"]))
                theirs += [other() for _ in range(3)]
            for index, name in enumerate(("TTFT", "TPOT")):
                ratio = (statistics.median(pair[index] for pair in ours) /
                         statistics.median(pair[index] for pair in theirs))
                harness.print_bar(f"{name} by bench / by a Python client", round(ratio, 3),
                                  f"within {SLACK}", 1 / SLACK < ratio < SLACK)
                self.assertTrue(1 / SLACK < ratio < SLACK, (ours, theirs))

    def test_a_full_queue_is_a_result(self):
        with Server(harness.demo_model(), "--max_sequences", "1", "--max_queue", "1", ranks=1) as server:
            out, _ = bench(server, *sizes(12, 16, 16), "--concurrency", 6, "--json")
            report = json.loads(out)
            self.assertGreater(report["refused"], 0)
            self.assertGreater(report["answered"], 0)
            self.assertEqual(report["answered"] + report["refused"], 12)
            tables, _ = bench(server, *sizes(12, 16, 16), "--concurrency", 6)
            self.assertRegex(tables, r"(?m)^\d+ refused: cannot take the request: 1 are queued, --max_queue allows 1; "
                             r"try again in [\d.]+ s$")

    def test_more_than_a_connection_carries(self):
        """All are with the server, none waits in the client for a stream."""
        with Server(harness.demo_model(), "--max_sequences", "1", "--max_queue", "1000", ranks=1) as server:
            process = self.start(server, *sizes(400, 2, 2), "--concurrency", 400)
            harness.wait_until(lambda: server.load().waiting > 300, 20, "more than 256 wait")
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=20)
            self.assertEqual(process.returncode, 1, log)

    def test_a_server_that_hangs(self):
        with Server(harness.tiny_model(), ranks=1) as server:
            os.kill(server.ranks()[0], signal.SIGSTOP)
            try:
                _, log = bench(server, *sizes(1, 1, 1), "--rate", 1, status=1)
            finally:
                os.kill(server.ranks()[0], signal.SIGCONT)
            self.assertRegex(log, "trireme: (the server did not answer: Deadline Exceeded|cannot reach a server at)")

    def test_bad_input_is_the_servers_word(self):
        with Server(harness.tiny_model(), ranks=1) as server:
            _, log = bench(server, *sizes(5, 100, 1 << 20), "--concurrency", 1, status=2)
            self.assertRegex(log, r"^trireme: the server did not answer: max_tokens: found 1048576, allowed: ")
            _, log = bench(server, *sizes(5, 1 << 20, 1), "--concurrency", 1, status=2)
            self.assertIn("trireme: the server did not answer: ", log)

    def test_a_signal_keeps_what_was_measured(self):
        with Server(harness.tiny_model(), ranks=1) as server:
            process = self.start(server, *sizes(10_000, 8, 8), "--rate", 50)
            harness.wait_until(lambda: server.load().output_tokens > 200, 20, "it is at work")
            process.send_signal(signal.SIGINT)
            out, log = process.communicate(timeout=10)
            self.assertEqual(process.returncode, 1, log)
            answered = int(re.match(r"(\d+) of 10000 requests answered", out)[1])
            self.assertGreater(answered, 10)
            self.assertEqual(log.splitlines()[-1],
                             f"trireme: stopped by a signal when {answered} of 10000 requests were answered")
            server.wait_free()

    def test_a_server_that_goes(self):
        with Server(harness.demo_model(), ranks=1) as server:
            process = self.start(server, *sizes(1000, 8, 64), "--concurrency", 4)
            harness.wait_until(lambda: server.load().output_tokens > 100, 20, "it is at work")
            os.kill(server.ranks()[0], signal.SIGKILL)
            out, log = process.communicate(timeout=20)
            self.assertEqual(process.returncode, 1, log)
            self.assertIn(" of 1000 requests answered", out)
            self.assertRegex(log, r"trireme: \d+ of 1000 requests failed, and 9\d\d were not sent, since the server has gone: ")

    def test_no_server(self):
        process = subprocess.run([BINARY, "bench", "--server", "127.0.0.1:1", *map(str, sizes(1, 1, 1)), "--rate", "1"],
                                 capture_output=True, text=True, timeout=30)
        self.assertEqual(process.returncode, 1)
        self.assertIn("cannot reach a server at 127.0.0.1:1", process.stderr)


if __name__ == "__main__":
    harness.main(limit_s=150)

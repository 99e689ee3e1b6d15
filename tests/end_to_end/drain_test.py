# SPDX-License-Identifier: Apache-2.0
"""Drains: by signal, by call and before the end of a Slurm job. What runs may finish within a limit, what is
cut is reported by id, and a client that comes too late hears until when."""
import json
import os
import re
import signal
import tempfile
import time
import unittest
from pathlib import Path

import harness
from harness import Server, Stream, chat_request, read

UTC = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def story(**fields):
    return chat_request("Tell a very long story.", ignore_eos=True, **fields)


class Drains(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="trireme-drain-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.status_file = self.folder / "status.json"

    def status(self):
        return json.loads(self.status_file.read_text())

    def start(self, *options, environment=None, model=None):
        return Server(model or harness.demo_model(), "--status_file", self.status_file, *options, ranks=3,
                      environment=environment)

    def test_a_limit_cuts_and_says_whom(self):
        with self.start("--drain_limit", "5s") as server:
            self.assertEqual(self.status()["state"], "serving")
            self.assertEqual(self.status()["address"], server.address)
            self.assertEqual(self.status()["pid"], server.ranks()[0])
            short = Stream(server.inference.Chat(story(request_id="short", max_tokens=8))).wait_begun()
            long = [Stream(server.inference.Chat(story(request_id=f"long-{i}", max_tokens=6000))).wait_begun()
                    for i in range(2)]
            begin = time.monotonic()
            os.kill(self.status()["pid"], signal.SIGTERM)
            harness.wait_until(lambda: self.status()["state"] == "draining", 5, "it drains")
            code, words = harness.refusal(server.inference.Chat, story(max_tokens=1))
            self.assertEqual(code, "UNAVAILABLE")
            self.assertRegex(words, "by a signal; what runs has until " + UTC)
            self.assertEqual(len(short.result().ids), 8)
            for stream in long:
                error = stream.wait_end(10).error
                self.assertEqual(error.code().name, "UNAVAILABLE")
                self.assertIn("was cut", error.details())
            self.assertEqual(server.wait(), 0)
            self.assertLess(time.monotonic() - begin, 15)
            self.assertRegex(server.log(), r"cut 2 requests of the \d that ran, after 5 s: long-0 long-1\n")
            end = self.status()
            self.assertEqual((end["state"], end["exit_status"]), ("ended", 0))
            self.assertIn("cut 2 requests", end["reason"])

    def test_by_call(self):
        token = self.folder / "token"
        token.write_text("s3cret-token-of-the-test\n")
        token.chmod(0o600)
        metadata = [("authorization", "Bearer s3cret-token-of-the-test")]
        pb = harness.api().pb
        with self.start("--token_file", str(token)) as server:
            stream = Stream(server.inference.Chat(story(max_tokens=40 // harness.PATIENCE), metadata=metadata)).wait_begun()
            self.assertEqual(harness.refusal(server.cluster.Drain, pb.DrainRequest())[0], "PERMISSION_DENIED")
            server.cluster.Drain(pb.DrainRequest(), metadata=metadata, timeout=5)
            self.assertEqual(len(stream.result().ids), 40 // harness.PATIENCE)
            self.assertEqual(server.wait(), 0)
            self.assertIn("by a call of Drain: every request has ended by itself", self.status()["reason"])

    def slurm(self, answers):
        """A job of Slurm as far as this program sees it: its id, and a squeue that prints these times left,
        one a call, the last again and again."""
        squeue = self.folder / "squeue"
        (self.folder / "answers").write_text("\n".join(answers) + "\n")
        squeue.write_text("#!/bin/sh\ncd " + str(self.folder) + "\nsed -n 1p answers\n"
                          "[ $(wc -l < answers) -gt 1 ] && sed -i 1d answers\nexit 0\n")
        squeue.chmod(0o755)
        return {"SLURM_JOB_ID": "17", "PATH": f"{self.folder}:{os.environ['PATH']}"}

    def test_before_the_jobs_end(self):
        # 16 s left, no more requests in the last 12, of which 10 are for the end itself. Asked again when the
        # time has come the job has more.
        with self.start("--drain_before", "12s", environment=self.slurm(["0:16", "0:18", "0:12"]),
                        model=harness.tiny_model()) as server:
            harness.wait_until(lambda: re.search("the Slurm job ends at " + UTC, server.log()), 10, "it asks Slurm")
            stream = Stream(server.inference.Chat(story(max_tokens=20))).wait_begun()
            self.assertEqual(len(stream.result().ids), 20)
            harness.wait_until(lambda: self.status()["state"] != "serving", 20, "it drains")
            self.assertEqual(server.wait(), 0)
            self.assertRegex(self.status()["reason"], "the Slurm job ends at " + UTC)
            self.assertRegex(server.log(), "was given more time")

    def test_without_an_end(self):
        with self.start("--drain_before", "2min", environment=self.slurm(["UNLIMITED"])) as server:
            harness.wait_until(lambda: re.search(
                "W .*--drain_before has no effect: Slurm job 17 has no time limit", server.log()), 10, "it says so")
            self.assertTrue(read(server.inference.Chat(story(max_tokens=2), timeout=30)).ids)
            self.assertEqual(server.drain(), 0)


if __name__ == "__main__":
    harness.main(limit_s=150)

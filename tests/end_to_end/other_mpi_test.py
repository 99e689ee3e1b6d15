# SPDX-License-Identifier: Apache-2.0
"""What tests/mpi_preset runs with a build for another MPI (TRIREME_BUILD_DIR): golden cases and an answer through
launch/trireme-run, a service that outlives a rank, hosts reached through an agent, and relaunches."""
import json
import os
import re
import signal
import subprocess
import time
import unittest
from pathlib import Path

import harness
from harness import BINARY, RUN, Job, Server, Stream, chat_request, read, trireme_run
from hosts import AGENT, BUILD, Hosts

GENERATE = ["generate", "--model", harness.tiny_model(), "--prompt_ids", "1,2,3", "--max_tokens", "8", "--json"]


def output_ids(out):
    return [json.loads(line)["output_ids"] for line in out.splitlines() if line.startswith("{")]


class OtherMpi(unittest.TestCase):
    def finish(self, *words, seconds=120):
        with Job([RUN, *words]) as job:
            status = job.wait(seconds)
            self.assertEqual(status, 0, job.log() + job.out())
            return job.out(), job.log()

    def test_golden_cases(self):
        for tp, pp in ((1, 2), (2, 2)):
            # Its own arguments stand after a sub-command, which it ignores.
            out, _ = self.finish("--binary", BUILD / "golden_mpi", "--ranks_per_node", tp * pp, "generate",
                                 "--gtest_brief=1", f"--tp={tp}", f"--pp={pp}")
            self.assertIn("PASSED", out)

    def test_generate(self):
        alone = harness.run(*GENERATE)
        out, log = self.finish("--binary", BINARY, "--ranks_per_node", 2, *GENERATE)
        print(log.splitlines()[0])
        self.assertEqual(output_ids(out), output_ids(alone.out))

    def test_generate_over_hosts(self):
        with Hosts(2) as bed:
            alone = harness.run(*GENERATE)
            done = bed.run("h1", RUN, "--agent", AGENT, "--host", "h1:1,h2:1", "--binary", BINARY, *GENERATE, seconds=60)
            print(done.stderr.splitlines()[0])
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(output_ids(done.stdout), output_ids(alone.out))
            self.assertEqual(bed.close(), [])

    def test_a_replica_outlives_the_other(self):
        library = re.search(r"=> (\S+/libmpi\.so\S*)", subprocess.run(["ldd", BINARY], capture_output=True, text=True).stdout)
        if (Path(library[1]).parent.parent / "bin/mpichversion").exists():
            self.skipTest("MPICH's Hydra ends the other ranks in some deaths, whatever its flags")
        request = chat_request("Count from one to a hundred in words.", max_tokens=100, ignore_eos=True)
        with Server(harness.demo_model(), "--dp", "2", "--pp", "1", launcher=trireme_run()) as server:
            expected = read(server.inference.Chat(request, timeout=60)).ids
            streams = [Stream(server.inference.Chat(request)).wait_begun() for _ in range(4)]
            os.kill(server.ranks()[1], signal.SIGKILL)
            lived = [stream for stream in streams if not stream.wait_end().error]
            self.assertTrue(0 < len(lived) < 4, server.log())
            for stream in lived:
                self.assertEqual(stream.answer.ids, expected)
            self.assertEqual(read(server.inference.Chat(request, timeout=60)).ids, expected)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(45), 0, server.log())

    def test_drain_and_relaunch(self):
        request = chat_request("What is the capital of France?", max_tokens=8)
        with Server(harness.demo_model(), "--pp", "2", launcher=trireme_run("--relaunch", "1")) as server:
            expected = read(server.inference.Chat(request, timeout=60)).ids
            killed_at = time.monotonic()
            os.kill(server.ranks()[2], signal.SIGKILL)
            harness.wait_until(lambda: server.address_file.exists() and server.log().count("listening on") == 2, 60,
                               "it answers again")
            server.address = server.address_file.read_text().strip()
            self.assertEqual(read(server.connect()[0].Chat(request, timeout=60)).ids, expected)
            print(f"answered again after {time.monotonic() - killed_at:.1f} s")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(45), 0, server.log())


if __name__ == "__main__":
    harness.main(limit_s=300)

# SPDX-License-Identifier: Apache-2.0
"""launch/slurm.sbatch and launch/slurm-srun.sbatch on a Slurm cluster of three nodes: the README's section as it
is printed, streamed answers, the drain before the time limit, relaunches, and what scancel leaves."""
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import harness  # first: it finds the virtual environment
import grpc
import hosts
import slurm
from harness import ROOT, Stream, chat_request, read

CAPITAL = "What is the capital of France?"
END_S = 12  # from scancel to the last process's end


def readme_commands():
    """The indented lines of README's Slurm section."""
    section = (ROOT / "README.md").read_text().partition("\n## Slurm\n")[2].partition("\n## ")[0]
    commands = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    assert commands, "README.md has no Slurm section with commands"
    return "\n".join(commands)


class OnSlurm(unittest.TestCase):
    def setUp(self):
        slurm.need_slurm()
        self.model = harness.demo_model()
        # As in a clone that is built.
        self.clone = Path(tempfile.mkdtemp(prefix="trireme-clone-"))
        self.addCleanup(shutil.rmtree, self.clone, ignore_errors=True)
        shutil.copytree(ROOT / "launch", self.clone / "launch", ignore=shutil.ignore_patterns("*.cc", "*.h"))
        for name, target in (("build", hosts.BUILD), (".models", ROOT / ".models")):
            (self.clone / name).symlink_to(target)

    def start(self, bed=None):
        self.cluster = slurm.Slurm(3, bed=bed)
        self.addCleanup(lambda: self.cluster.close())

    def script(self, name, **edits):
        """One of launch/ with lines edited, as its users do; keys are the texts before the edit."""
        text = (ROOT / "launch" / name).read_text()
        for old, new in edits.items():
            self.assertIn(old, text)
            text = text.replace(old, new)
        path = self.clone / f"edited-{name}"
        path.write_text(text)
        return path

    def submit(self, script, *options):
        job = self.cluster.submit(*options, script, cwd=self.clone)
        self.log_path = self.clone / f"trireme-{job}.log"
        self.address_path = self.clone / f"trireme-{job}.address"
        try:
            self.wait_served(1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}\n{self.cluster.logs()}") from None
        return job

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_served(self, times):
        def served():
            ended = re.search("trireme-run: exit.*", self.log())
            assert ended is None, ended
            return self.address_path.exists() and self.log().count("listening on") == times
        harness.wait_until(served, 60, "the service's address is written")
        # The address is in the log too.
        address = self.address_path.read_text().strip()
        self.assertIn(f"listening on {address}", self.log())
        self.address = address
        self.inference = self.connect()

    def connect(self):
        return harness.api().rpc.InferenceStub(grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]))

    def wait_gone(self):
        harness.wait_until(lambda: not self.cluster.members(), END_S, "no process of the job is left")


class Readme(OnSlurm):
    def test_the_section_as_it_is_printed(self):
        self.start()
        begun = time.monotonic()
        done = subprocess.run(["timeout", "90", "bash", "-euc", readme_commands()], cwd=self.clone, text=True,
                              capture_output=True, env={**os.environ, **self.cluster.environment})
        logs = "".join(path.read_text(errors="replace") for path in self.clone.glob("trireme-*.log"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr + logs)
        self.assertIn("Paris", done.stdout)
        harness.print_bar("README's Slurm section, s", round(time.monotonic() - begun, 1), "<= 60",
                          time.monotonic() - begun <= 60)
        harness.wait_until(lambda: not self.cluster.run("squeue", "-h").strip(), 30, "the job has ended")
        self.wait_gone()


class Scripts(OnSlurm):
    def test_mpirun(self):
        self.start()
        self.whole_life(self.script("slurm.sbatch", **{"--drain_before 2min": "--drain_before 40s --pp 3"}))

    def test_srun_over_hosts(self):
        # Each node with a network of its own; a Unix socket is the same for all of them.
        hosts.need_hosts()
        bed = hosts.Hosts(3)
        self.addCleanup(bed.close)
        self.start(bed)
        self.whole_life(self.script("slurm-srun.sbatch", **{
            "--drain_before 2min": "--drain_before 40s --pp 3", "127.0.0.1:0\n": f"unix:{self.clone}/client\n"}))
        self.cluster.close()
        self.assertEqual(bed.close(), [])

    def whole_life(self, script):
        """Serves, loses a rank, serves again, drains before the time limit; another job is cancelled."""
        job = self.submit(script, "--time=1")
        begun = time.monotonic()
        request = chat_request(CAPITAL, max_tokens=8)
        stream = Stream(self.inference.Chat(request, timeout=60))
        expected = stream.result().ids
        self.assertIn("Paris", stream.answer.text)
        self.assertEqual(len(self.cluster.ranks()), 4)  # a coordinator, and one on each node
        os.kill(self.cluster.ranks()[2], signal.SIGKILL)
        self.wait_served(2)
        self.assertEqual(read(self.inference.Chat(request, timeout=60)).ids, expected)
        self.stream_until_drained()
        self.assertLess(time.monotonic() - begun, 58, "that was the time limit, not the drain")
        self.assertEqual(self.cluster.wait_state(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"), "COMPLETED",
                         self.log())
        self.assertFalse(self.address_path.exists())
        self.wait_gone()

        job = self.submit(script, "--time=10")
        stream = Stream(self.inference.Chat(chat_request("Tell a very long story.", max_tokens=4000,
                                                         ignore_eos=True))).wait_begun()
        self.cluster.run("scancel", job)
        self.cluster.wait_state(job, "CANCELLED", "COMPLETED")
        self.wait_gone()
        self.assertIsNotNone(stream.wait_end(10).error)

    def stream_until_drained(self):
        """Stream after stream until the service takes no more; each that it took must end well."""
        request = chat_request("Count from one to a hundred in words.", max_tokens=40, ignore_eos=True)
        taken = 0
        while True:
            # A connection of its own: a call on an old one that meets the server's last moment was seen to
            # hang in the client library (grpcio 1.62), and on a new one to end as CANCELLED.
            stream = Stream(self.connect().Chat(request, timeout=60)).wait_end()
            if stream.error is not None:
                self.assertIn(stream.error.code().name, ("UNAVAILABLE", "CANCELLED"), stream.error)
                self.assertEqual(stream.answer.ids, [], "a stream was cut")
                self.assertGreater(taken, 0)
                self.assertIn("ending since the Slurm job ends at", self.log())
                return
            taken += 1


if __name__ == "__main__":
    harness.main(limit_s=240)

# SPDX-License-Identifier: Apache-2.0
"""launch/trireme-run on one host: the line that it prints, drains, true exit codes, relaunches, and nothing left
behind, whatever ends the job."""
import os
import signal
import stat
import subprocess
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path

import harness
from harness import RUN, Job, Server, Stream, chat_request, read, trireme_run

GENERATE = ["generate", "--model", harness.tiny_model(), "--prompt_ids", "1,2,3", "--max_tokens", "5", "--json"]
ENDLESS = {"max_tokens": 4000, "ignore_eos": True}
RELAUNCH_S = 5  # from a rank's death to the next answer


def launch(*words, seconds=30):
    """trireme-run from start to end."""
    with Job([RUN, *words]) as job:
        begun = time.monotonic()
        status = job.wait(seconds)
        return status, job.out(), job.log(), time.monotonic() - begun


def ids_of(out):
    return [line.partition('"output_ids":')[2].partition("]")[0] for line in out.splitlines()]


class Lines(unittest.TestCase):
    def test_the_printed_line_does_the_same(self):
        status, out, log, _ = launch("--ranks_per_node", 2, *GENERATE)
        self.assertEqual(status, 0, log)
        printed = log.splitlines()[0].removeprefix("trireme-run: ")
        again = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, timeout=30)
        self.assertIn("mpirun -n 3 ", printed)
        self.assertEqual(ids_of(again.stdout), ids_of(out), again.stderr)
        self.assertTrue(ids_of(out)[0])

    def test_ranks_follow_degrees_and_options(self):
        for options, count in ((["serve", "--pp", "3"], 4), (["serve", "--tp=2", "--dp", "2"], 5),
                               (["--ranks_per_node", "4", "serve", "--pp", "2"], 5),
                               (["--host", "localhost:2", "serve"], 3)):
            status, _, log, _ = launch("--dry_run", *options)
            self.assertEqual(status, 0, log)
            self.assertIn(f"mpirun -n {count} ", log)
            self.assertIn("--enable-recovery", log)

    def test_a_device_each_and_a_coordinator(self):
        # A program without CUDA has no use for the GPUs of a job.
        with unittest.mock.patch.dict(os.environ, {"SLURM_GPUS_ON_NODE": "7"}):
            status, _, log, _ = launch("--dry_run", "serve")
        nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
        self.assertEqual(status, 0)
        if not Path("/proc/driver/nvidia/gpus").exists():
            self.assertIn(f"mpirun -n {nodes + 1} ", log)

    def test_bad_options_say_what_is_wrong(self):
        with tempfile.NamedTemporaryFile("w", suffix=".hosts") as hostfile:
            hostfile.write("# nobody\n")
            hostfile.flush()
            for words, said in (([], "usage:"), (["--bogus", "1", "serve"], "no option --bogus"),
                                (["--relaunch", "-1", "serve"], "--relaunch: found \"-1\""),
                                (["--ranks_per_node", "0", "serve"], "of 1 or more"),
                                (["--host", "a:", "serve"], "found \"a:\""),
                                (["--host", "a;b", "serve"], "needed is HOST"),
                                (["--hostfile", "/nope", "serve"], "cannot read /nope"),
                                (["--hostfile", hostfile.name, "serve"], "no host is named"),
                                (["--host", "a", "--hostfile", "b", "serve"], "not both"),
                                (["--launcher", "srun", "serve"], "needs a Slurm job"),
                                (["--binary", "/nope", "serve"], "no program /nope"),
                                (["--relaunch"], "needs a value"),
                                (["--relaunch", "1", *GENERATE], "--relaunch is for serve"),
                                (["--host", "a", "chat", "Hello"], "chat needs no ranks")):
                with self.subTest(words):
                    status, _, log, _ = launch(*words)
                    self.assertEqual(status, 2, log)
                    self.assertIn(said, log)

    def test_another_mpis_mpirun_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            stranger = Path(folder) / "mpirun"
            stranger.write_text("#!/bin/sh\necho 'HYDRA build details:'\n")
            stranger.chmod(stranger.stat().st_mode | stat.S_IXUSR)
            status, _, log, _ = launch("--mpirun", stranger, *GENERATE)
            self.assertEqual(status, 2)
            self.assertIn("give the mpirun that belongs to it", log)

    def test_commands_without_ranks_need_no_mpi(self):
        status, out, _, _ = launch("serve", "--help")
        self.assertEqual(status, 0)
        self.assertIn("--address_file", out)
        status, _, _, _ = launch("chat", "--server", "unix:/nope", "Hello")
        self.assertNotEqual(status, 0)


class Ends(unittest.TestCase):
    def server(self, model=None, *options, launcher=()):
        return Server(model or harness.tiny_model(), "--pp", "2", *options, launcher=trireme_run(*launcher))

    def test_refusals_are_status_2_and_not_relaunched(self):
        for words in (["serve", "--bogus"], ["serve", "--model", "/nope"],
                      ["generate", "--model", "/nope", "--prompt", "x"]):
            with self.subTest(words):
                again = ["--relaunch", 3] if words[0] == "serve" else []
                status, _, log, seconds = launch(*again, *words)
                self.assertEqual(status, 2, log)
                self.assertNotIn("relaunch 1", log)
                self.assertLess(seconds, 15)

    def test_sigterm_drains(self):
        model = harness.demo_model()
        request = chat_request("Count from one to a hundred in words.", max_tokens=60, ignore_eos=True)
        with self.server(model) as server:
            expected = read(server.inference.Chat(request, timeout=60)).ids
            streams = [Stream(server.inference.Chat(request)).wait_begun() for _ in range(3)]
            server.process.send_signal(signal.SIGTERM)
            for stream in streams:
                self.assertEqual(stream.result().ids, expected)
            self.assertEqual(server.wait(), 0, server.log())

    def test_a_second_signal_hurries(self):
        with self.server(harness.demo_model()) as server:
            stream = Stream(server.inference.Chat(chat_request("Tell a very long story.", **ENDLESS))).wait_begun()
            server.process.send_signal(signal.SIGINT)
            harness.wait_until(lambda: "asking rank 0" in server.log(), 5, "the first signal is told")
            time.sleep(0.5)
            self.assertIsNone(stream.ended_at)
            server.process.send_signal(signal.SIGINT)
            self.assertEqual(server.wait(15), 0, server.log())
            self.assertEqual(stream.wait_end(5).error.code().name, "UNAVAILABLE")

    def test_a_dead_worker_is_status_1(self):
        with self.server() as server:
            os.kill(server.ranks()[2], signal.SIGKILL)
            self.assertEqual(server.wait(), 1, server.log())
            self.assertRegex(server.log_lines()[-1], "^trireme-run: exit 1: .*rank 2")

    def test_a_stopped_worker_does_not_outlive_its_job(self):
        with self.server() as server:
            os.kill(server.ranks()[1], signal.SIGSTOP)
            server.process.send_signal(signal.SIGTERM)
            server.wait(45)
            self.assertIn("ended on host", server.log())

    def test_a_third_signal_ends_a_stopped_coordinator(self):
        with self.server() as server:
            os.kill(server.ranks()[0], signal.SIGSTOP)
            for _ in range(3):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            self.assertEqual(server.wait(), 1, server.log())

    def test_a_killed_launcher_takes_its_job_along(self):
        with self.server() as server:
            server.process.kill()
            server.wait()


class Relaunch(unittest.TestCase):
    def test_a_lost_job_answers_again(self):
        model = harness.demo_model()
        request = chat_request("What is the capital of France?", max_tokens=8)
        seconds = {}
        with Server(model, "--pp", "2", launcher=trireme_run("--relaunch", "2")) as server:
            expected = read(server.inference.Chat(request, timeout=60)).ids
            for rank in (0, 1):
                before = server.ranks()
                killed_at = time.monotonic()
                os.kill(before[rank], signal.SIGKILL)
                harness.wait_until(lambda: before[0] != server.ranks().get(0, before[0]), 30, "another rank 0")
                harness.wait_until(lambda: server.address_file.exists() and
                                   server.log().count("listening on") == rank + 2, 30, "it answers again")
                server.address = server.address_file.read_text().strip()
                inference, _ = server.connect()
                self.assertEqual(read(inference.Chat(request, timeout=60)).ids, expected)
                seconds[rank] = round(time.monotonic() - killed_at, 2)
            self.assertIn("relaunch 2 of 2", server.log())
            # And no third time.
            os.kill(server.ranks()[2], signal.SIGKILL)
            self.assertEqual(server.wait(), 1)
        harness.print_bar("relaunch answers after a rank's death, s", max(seconds.values()), f"<= {RELAUNCH_S}",
                          max(seconds.values()) <= RELAUNCH_S, by_rank=seconds)


if __name__ == "__main__":
    harness.main(limit_s=300)

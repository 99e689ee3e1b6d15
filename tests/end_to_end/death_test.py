# SPDX-License-Identifier: Apache-2.0
"""Workers that die by SIGKILL, while they work and while they sleep, with mpirun's --enable-recovery and
without: every open stream must end within half a second with the rank, host and stage that was lost, the
server with status 1, and nothing may be left running. And the ends that are asked for."""
import os
import re
import signal
import socket
import time
import unittest

import harness
from harness import Server, Stream, chat_request, ids_request, read

CLOSE_MS = 500 * harness.PATIENCE  # from the kill to the last stream's end
GONE_S = 8      # from the kill to the end of the whole job
HOST = socket.gethostname()
delays = {}     # of streams, in ms, by mpirun's mode


FLAGS = ["--pp", "2", "--max_sequences", "2"]  # two requests run, the others wait


def endless(model):
    if model == harness.tiny_model():
        return [ids_request([1, 2, 3 + number], max_tokens=2000, ignore_eos=True) for number in range(30)]
    return [chat_request(f"Tell a very long story of {number} cats.", max_tokens=4000, ignore_eos=True)
            for number in range(8)]


class Deaths(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        for mode, values in delays.items():
            worst = max(values)
            harness.print_bar(f"stream end after a rank's death, {mode}, ms", round(worst, 1),
                              f"<= {CLOSE_MS}", worst <= CLOSE_MS, streams=len(values),
                              median=round(sorted(values)[len(values) // 2], 1))

    def open_streams(self, server, model, victim):
        """Streams of which two are in work, at the victim if it is the small model's. That one makes tokens
        faster than a client in Python reads, which would still be reading when its stream has long been
        closed: so the victim stops with the first batch in its hands."""
        small = model == harness.tiny_model()
        server.load()  # the connection stands
        if small:
            os.kill(victim, signal.SIGSTOP)
        streams = [Stream(server.inference.Generate(request) if small else server.inference.Chat(request))
                   for request in endless(model)]
        harness.wait_until(lambda: server.load().running == 2 and server.load().waiting == len(streams) - 2,
                           10, "every stream is at the server")
        if not small:
            harness.wait_until(lambda: sum(stream.begun() for stream in streams) >= 2, 30, "two streams begin")
        return streams

    def check_end(self, server, lost, killed_at, recovery):
        """The server's own last words and status, and mpirun's."""
        status = server.wait(GONE_S)
        self.assertLess(time.monotonic() - killed_at, GONE_S)
        log = server.log()
        # With recovery mpirun's own status says nothing; rank 0's last words stand for its own, 1.
        self.assertTrue(status != 0 or recovery, log)
        self.assertRegex(server.last_word(), "^trireme: cannot go on: .*" + lost)
        self.assertRegex(log, r"E \S+ engine_events.cc:\d+ a consequence: replica 0 is lost: " + lost)
        # The SIGTERM that mpirun sends to the others is a consequence of the death, not a wish.
        self.assertNotIn(": no more requests", log)
        # What it does to the others is marked as its consequence.
        self.assertEqual(len(re.findall(r"replica 0 is lost", log)), 1, log)

    def die(self, model, rank, recovery, working):
        mode = "--enable-recovery" if recovery else "plain"
        with self.subTest(os.path.basename(model), rank=rank, mode=mode, working=working), \
                Server(model, *FLAGS, ranks=3, recovery=recovery) as server:
            stage = server.stage_ranks().index(rank)
            lost = re.escape(f"rank {rank} (host {HOST}, stage {stage})") + " is lost"
            victim = server.ranks()[rank]
            streams = self.open_streams(server, model, victim) if working else []
            killed_at = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            open_ends = []
            for stream in streams:
                stream.wait_end(10)
                self.assertIsNotNone(stream.error, "a stream ended well without its rank")
                self.assertEqual(stream.error.code().name, "UNAVAILABLE")
                self.assertRegex(stream.error.details(), lost)
                open_ends.append((stream.ended_at - killed_at) * 1e3)
            if working:
                self.assertLessEqual(max(open_ends), CLOSE_MS)
                delays.setdefault(mode, []).extend(open_ends)
            self.check_end(server, lost, killed_at, recovery)

    def test_small_model_while_working(self):
        for recovery in (False, True):
            for rank in (1, 2, 1, 2):
                self.die(harness.tiny_model(), rank, recovery, working=True)

    def test_small_model_while_idle(self):
        for recovery in (False, True):
            for rank in (1, 2):
                self.die(harness.tiny_model(), rank, recovery, working=False)

    def test_demo_model_while_working(self):
        model = harness.demo_model()
        for recovery in (False, True):
            for rank in (1, 2):
                self.die(model, rank, recovery, working=True)

    def test_mpirun_itself(self):
        model = harness.demo_model()
        with Server(model, *FLAGS, ranks=3) as server:
            self.open_streams(server, model, None)
            os.kill(server.process.pid, signal.SIGKILL)
            # Every rank goes with it. The streams are not looked at: grpcio 1.62 at times does not notice
            # that the last process behind a connection was killed.
            server.wait(GONE_S)

    def test_coordinator(self):
        for recovery in (False, True):
            with self.subTest(recovery=recovery), \
                    Server(harness.tiny_model(), ranks=3, recovery=recovery) as server:
                os.kill(server.ranks()[0], signal.SIGKILL)
                status = server.wait(GONE_S)
                self.assertTrue(status != 0 or recovery)


class Replicas(unittest.TestCase):
    def test_the_other_one_goes_on(self):
        model = harness.demo_model()
        request = chat_request("Count from one to a hundred in words.", max_tokens=150 // harness.PATIENCE, ignore_eos=True)
        with Server(model, "--dp", "2", "--pp", "1", ranks=3, recovery=True) as server:
            alone = read(server.inference.Chat(request, timeout=60 * harness.PATIENCE)).ids
            streams = [Stream(server.inference.Chat(request)).wait_begun() for _ in range(4)]
            placement = server.cluster.GetPlacement(harness.api().pb.GetPlacementRequest(), timeout=5)
            self.assertEqual(len(placement.replicas), 2)
            blocks = server.load().blocks_total
            os.kill(server.ranks()[1], signal.SIGKILL)
            lost = [stream for stream in streams if stream.wait_end().error]
            lived = [stream for stream in streams if not stream.error]
            # Requests go to the replica that will be done first: two each, or nearly, where a busy
            # machine makes one replica the slower.
            self.assertGreaterEqual(min(len(lost), len(lived)), 1)
            for stream in lost:
                self.assertEqual(stream.error.code().name, "UNAVAILABLE")
                self.assertIn(f"rank 1 (host {HOST}, stage 0) is lost", stream.error.details())
            for stream in lived:
                self.assertEqual(stream.answer.ids, alone)
            self.assertEqual(server.load().blocks_total, blocks // 2)
            self.assertEqual(read(server.inference.Chat(request, timeout=60 * harness.PATIENCE)).ids, alone)
            os.kill(server.ranks()[0], signal.SIGTERM)
            server.wait()
            self.assertIn(": no more requests", server.log())


class Drain(unittest.TestCase):
    def test_running_streams_finish(self):
        model = harness.demo_model()
        request = chat_request("Count from one to a hundred in words.", max_tokens=60 // harness.PATIENCE, ignore_eos=True)
        with Server(model, ranks=3) as server:
            alone = read(server.inference.Chat(request, timeout=60 * harness.PATIENCE)).ids
            streams = [Stream(server.inference.Chat(request)).wait_begun() for _ in range(4)]
            os.kill(server.ranks()[0], signal.SIGTERM)
            harness.wait_until(lambda: ": no more requests" in server.log(), 5, "the drain is said")
            code, _ = harness.refusal(server.inference.Chat, request)
            self.assertEqual(code, "UNAVAILABLE")
            for stream in streams:
                self.assertEqual(stream.result().ids, alone)
            self.assertEqual(server.wait(), 0)
            self.assertFalse(server.address_file.exists())

    def test_a_second_signal_ends_at_once(self):
        with Server(harness.demo_model(), ranks=3) as server:
            stream = Stream(server.inference.Chat(
                chat_request("Tell a very long story.", max_tokens=4000, ignore_eos=True))).wait_begun()
            os.kill(server.ranks()[0], signal.SIGTERM)
            harness.wait_until(lambda: ": no more requests" in server.log(), 5, "the drain is said")
            os.kill(server.ranks()[0], signal.SIGTERM)
            self.assertEqual(server.wait(8), 0)
            self.assertEqual(stream.wait_end(5).error.code().name, "UNAVAILABLE")

    def test_an_idle_job_ends_by_mpiruns_signal(self):
        # As `kill` or Slurm ends it: mpirun passes the signal on to every rank.
        with Server(harness.tiny_model(), ranks=3) as server:
            server.process.send_signal(signal.SIGTERM)
            server.wait(8)
            self.assertIn(": no more requests", server.log())


if __name__ == "__main__":
    harness.main(limit_s=200)

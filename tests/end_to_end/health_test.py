# SPDX-License-Identifier: Apache-2.0
"""Health is progress: a rank that is stopped inside an all-reduce is suspected in time and named with what
it was doing, and well again when it goes on; a long prefill is no suspicion."""
import os
import signal
import socket
import sys
import threading
import time
import unittest

import harness  # first: it finds the virtual environment
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Server, Stream, chat_request, ids_request

FLIP_S = 2.5   # from SIGSTOP to NOT_SERVING
SLACK_S = 2.0  # of a machine that is busy with something else
PREFILL_S = 60 if "--long" in sys.argv else 4
COLLECTIVE = r"^(layer \d+ all-reduce|all-reduce|gather logits)$"


class Watch(threading.Thread):
    """Every word of WatchHealth, with its time."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.call = server.cluster.WatchHealth(harness.api().pb.WatchHealthRequest())
        self.seen = []
        self.start()

    def run(self):
        try:
            for health in self.call:
                self.seen.append((time.monotonic(), health))
        except grpc.RpcError:
            pass

    def wait(self, condition, seconds, what, since=0.0):
        """The first word after `since` for which the condition holds, and its time."""
        def found():
            return next(((at, health) for at, health in self.seen if at >= since and condition(health)), None)
        return harness.wait_until(found, seconds, what)


def health_status(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(service="trireme.v1.Inference"), timeout=5)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


class Stopped(unittest.TestCase):
    def test_inside_an_all_reduce(self):
        request = chat_request("Tell a very long story of a ship.", max_tokens=8000, ignore_eos=True)
        with Server(harness.demo_model(), "--tp", "2", "--pp", "1", ranks=3, recovery=True) as server:
            watch = Watch(server)
            stream = Stream(server.inference.Chat(request)).wait_begun()
            watch.wait(lambda health: health.ranks[1].current_micro_batch > 0, 5, "rank 2 is at work")
            self.assertEqual(health_status(server), "SERVING")
            stopped_at = time.monotonic()
            os.kill(server.ranks()[2], signal.SIGSTOP)
            try:
                at, health = watch.wait(lambda health: not health.serving, FLIP_S + SLACK_S,
                                        "health says that it does not serve", stopped_at)
                flip = at - stopped_at
                self.assertEqual(health_status(server), "NOT_SERVING")
                waiting, stopped = health.ranks
                self.assertEqual(stopped.state, "suspected")  # not dead
                self.assertIn("silent", stopped.why)
                self.assertEqual((stopped.rank, stopped.host, stopped.replica, stopped.stage),
                                 (2, socket.gethostname(), 0, 0))
                self.assertTrue(stopped.operation)  # of its last heartbeat
                self.assertGreaterEqual(stopped.heartbeat_age_ms, 1700)  # of 2000, less the heartbeat's way
                # The other one waits for it, and is not to blame.
                self.assertEqual(waiting.state, "serving")
                self.assertEqual(list(waiting.waiting_for), [2])
                self.assertRegex(waiting.operation, COLLECTIVE)
                self.assertGreater(waiting.since_ms, 1000)
                harness.print_bar("SIGSTOP inside an all-reduce to NOT_SERVING, s", round(flip, 2),
                                  f"<= {FLIP_S}", flip <= FLIP_S, operation=waiting.operation)
                self.assertLessEqual(flip, FLIP_S + SLACK_S)
            finally:
                os.kill(server.ranks()[2], signal.SIGCONT)
            again_at = time.monotonic()
            at, _ = watch.wait(lambda health: health.serving, 5, "it serves again", again_at)
            self.assertRegex(server.log(), r"W .* rank 2 \(host \S+, stage 0\) is suspected: silent: no heartbeat for "
                             r"[1-4]\.\d s; it was (in micro-batch|idle)")
            self.assertRegex(server.log(), r"rank 2 \(.*\) is well again")
            harness.print_bar("SIGCONT to SERVING, s", round(at - again_at, 2), "<= 2.5", at - again_at <= 2.5)
            drawn = len(stream.answer.ids)
            harness.wait_until(lambda: len(stream.answer.ids) > drawn + 5 or stream.ended_at, 30, "the stream goes on")
            self.assertIsNone(stream.error)
            self.assertEqual(health_status(server), "SERVING")
            stream.call.cancel()


class Drift(unittest.TestCase):
    def test_a_rank_that_is_kept_from_its_cores(self):
        """It runs a quarter of the time, which is more than a busy machine's measuring can be wrong by: its step
        times are not the plan's, and who and why is said."""
        with Server(harness.demo_model(), "--pp", "2", "--threads", "1", ranks=3) as server:
            watch = Watch(server)
            slow, over = server.ranks()[2], threading.Event()

            def keep_from_its_cores():
                while not over.wait(0.04):
                    os.kill(slow, signal.SIGSTOP)
                    over.wait(0.12)
                    os.kill(slow, signal.SIGCONT)

            keeper = threading.Thread(target=keep_from_its_cores, daemon=True)
            keeper.start()
            try:
                request = chat_request("Tell a very long story of a ship.", max_tokens=1800, ignore_eos=True)
                streams = [Stream(server.inference.Chat(request)) for _ in range(4)]
                begin = time.monotonic()
                at, health = watch.wait(lambda health: "rank 2 (" in health.ranks[1].drift and "other work" in health.ranks[1].drift,
                                        60, "rank 2's drift is told, and the cause")
                drift = health.ranks[1].drift
                self.assertRegex(drift, r"^stage [01] of replica 0, rank 2 \(\S+\), takes [\d.]+ ms a step, planned were [\d.]+ ms "
                                 r"\(.+\)\. Likely cause: other work on its cores: its thread had a CPU for \d+ % of the time")
                self.assertIn(f" {drift}", server.log())
                self.assertGreater(health.ranks[1].step_over_plan, 1.15 * health.ranks[0].step_over_plan)
                harness.print_bar("a rank at a quarter of its time named with the cause, s", round(at - begin, 1), "<= 60", True)
            finally:
                over.set()
                keeper.join()
            for stream in streams:
                stream.call.cancel()


class LongPrefill(unittest.TestCase):
    def test_is_no_suspicion(self):
        """One micro-batch of thousands of tokens, on one thread and without the fast instructions."""
        # A bar of its own length: the prompt of --long takes a minute.
        tokens = 7000 if PREFILL_S > 10 else 3000
        with Server(harness.demo_model(), "--pp", "2", "--max_batch_tokens", "8192", "--context", "8192",
                    "--threads", "1", "--isa", "avx2", "--dtype", "fp32", "--max_sequences", "1",
                    ranks=3) as server:
            watch = Watch(server)
            harness.wait_until(lambda: watch.seen, 5, "the first word")
            begin = time.monotonic()
            while time.monotonic() - begin < PREFILL_S:
                ids = [5 + number % 1000 for number in range(tokens)]
                Stream(server.inference.Generate(ids_request(ids, max_tokens=1))).result(500)
            took = time.monotonic() - begin
            words = [health for at, health in watch.seen if at >= begin]
            bad = [rank.why for health in words for rank in health.ranks if rank.state != "serving"]
            ok = all(health.serving for health in words) and not bad
            longest = max(rank.since_ms for health in words for rank in health.ranks) / 1e3
            harness.print_bar("health during a long prefill, words that say NOT_SERVING",
                              sum(not health.serving for health in words), "0", ok, seconds=round(took, 1),
                              words=len(words), longest_operation_s=round(longest, 1))
            self.assertEqual(bad, [])
            self.assertTrue(ok)
            # It was told all along, twice a second, what the ranks are in.
            self.assertGreater(len(words), took)
            self.assertTrue(any(list(health.ranks[1].waiting_for) == [1] and
                                health.ranks[1].operation == "receive activations" for health in words))
            self.assertTrue(any("layer" in health.ranks[0].operation for health in words))
            # Idle at the end, and silent: nothing is told while nothing happens.
            watch.wait(lambda health: all(rank.operation == "idle" for rank in health.ranks), 5,
                       "all ranks idle", begin)


if __name__ == "__main__":
    if "--long" in sys.argv:
        sys.argv.remove("--long")
    harness.main(limit_s=400 if PREFILL_S < 10 else 700)

# SPDX-License-Identifier: Apache-2.0
"""A job whose control port is attacked from the moment that it opens, over links so slow that it is open for
long: it starts in time, its tokens are right, its memory is bounded and its latency is not ruined."""
import json
import os
import statistics
import subprocess
import sys
import time
import unittest
from pathlib import Path

import control_attack
import harness
import hosts
from harness import Server, chat_request, read
from hosts import Hosts

MPI_PORT_OPTIONS = [word for family in ("v4", "v6") for word in (
    "--mca", f"btl_tcp_port_min_{family}", control_attack.MPI_PORTS.start,
    "--mca", f"btl_tcp_port_range_{family}", len(control_attack.MPI_PORTS))]
ATTACK_LIMIT_S = 100  # it is ended when the job has been measured
MEMORY_MB = 64        # that rank 0 may hold more than without the attack
SLOWER = 3            # on two cores, of which the attacker takes a part
MUCH_SLOWER = 10      # on a machine that does other things too
START_LATER_S = 20    # than without the attack
REQUEST = "Count from one to twenty in words."


def resident_mb(pid):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) // 1024


class Attack(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        hosts.need_hosts()

    def setUp(self):
        self.model = harness.demo_model()
        self.bed = Hosts(2, latency_ms=100)
        self.addCleanup(self.bed.close)
        self.start_s = {}

    def start(self, name):
        variables = [f"{key}={value}" for key, value in self.bed.environment.items()]
        launcher = ["env", *variables, "setpriv", "--pdeathsig", "TERM", *self.bed.on("h1"), "mpirun",
                    "--allow-run-as-root", "--enable-recovery", *self.bed.mpirun_options(2), *MPI_PORT_OPTIONS]
        begin = time.monotonic()
        server = Server(self.model, launcher=launcher, listen=f"unix:{self.bed.folder}/{name}")
        self.start_s[name] = time.monotonic() - begin
        return server

    def measure(self, server):
        """Answers, and the median time of one with a few tokens."""
        request = chat_request(REQUEST, max_tokens=4, ignore_eos=True)
        times = []
        for _ in range(3):
            begin = time.monotonic()
            ids = read(server.inference.Chat(request, timeout=60)).ids
            times.append(time.monotonic() - begin)
        return ids, statistics.median(times), resident_mb(server.ranks()[0])

    def test_serves_all_the_same(self):
        with self.start("quiet") as server:
            expected, quiet_s, quiet_mb = self.measure(server)
            self.assertEqual(server.drain(), 0, server.log())
        # By the network of h1, with the processes of all: the attacker looks for rank 0 by the test's folder.
        attacker = subprocess.Popen(
            [*self.bed.on("h1"), sys.executable, control_attack.__file__, f"TRIREME_TEST_BED={self.bed.folder}",
             str(ATTACK_LIMIT_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            with self.start("attacked") as server:
                ids, attacked_s, attacked_mb = self.measure(server)
                self.assertIsNone(attacker.poll(), "the attack ended before the job was measured")
                result = json.loads(attacker.communicate(timeout=20)[0])
                self.assertEqual(server.drain(), 0, server.log())
        finally:
            if attacker.poll() is None:
                attacker.kill()
            attacker.wait()
            attacker.stdin.close()
            attacker.stdout.close()
        print(json.dumps(result))
        self.assertIsNotNone(result["port"])
        self.assertGreater(result["accepted"], 50, "the port was open for too short a time to be attacked")
        self.assertGreater(result["refused"], 50, "it closes when every rank has come")
        self.assertEqual(ids, expected)
        harness.print_bar("rank 0's memory under attack, MB more", attacked_mb - quiet_mb, f"<= {MEMORY_MB}",
                          attacked_mb - quiet_mb <= MEMORY_MB)
        harness.print_bar("an answer's time under attack / without", round(attacked_s / quiet_s, 2), f"<= {SLOWER}",
                          attacked_s <= SLOWER * quiet_s, cores=os.cpu_count())
        later = self.start_s["attacked"] - self.start_s["quiet"]
        harness.print_bar("a start under attack is later by, s", round(later, 1), f"<= {START_LATER_S}",
                          later <= START_LATER_S, cores=os.cpu_count(), quiet_s=round(self.start_s["quiet"], 1))
        self.assertLessEqual(later, START_LATER_S)
        self.assertLessEqual(attacked_mb - quiet_mb, MEMORY_MB)
        self.assertLessEqual(attacked_s, MUCH_SLOWER * quiet_s)
        self.assertEqual(self.bed.close(), [])


if __name__ == "__main__":
    harness.main(limit_s=200)

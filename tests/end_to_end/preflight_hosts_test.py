# SPDX-License-Identifier: Apache-2.0
"""The links of a job over several hosts: measured as they are, and pairs that cannot connect by name."""
import re
import unittest

import harness
import hosts
from harness import BINARY, Job, print_bar
from hosts import Hosts
from multihost_test import on_hosts

RATE_MBIT = 1000
LATENCY_MS = 5
START = ["plan", "--model", harness.tiny_model(), "--tp", "1", "--pp", "1"]


def rows(log):
    """The table of links: {name: (transport, pairs, [latencies in µs], [GB/s])}."""
    found = {}
    for line in log.splitlines():
        columns = [column for column in re.split(r"  +", line.strip()) if column]
        if len(columns) == 5 and columns[2].isdigit():
            numbers = [[float(n) for n in column.split(" / ")] for column in columns[3:]]
            found[columns[0]] = (columns[1], int(columns[2]), *numbers)
    return found


class Links(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        hosts.need_hosts()

    def test_are_measured_as_they_are(self):
        with Hosts(3, rate_mbit=RATE_MBIT, latency_ms=LATENCY_MS) as bed, \
                Job([*on_hosts(bed), BINARY, *START]) as job:
            self.assertEqual(job.wait(60), 0, job.log())
            table = rows(job.log())
            # 5 workers: rank 1 on h1, two each on h2 and h3.
            self.assertEqual({name: row[1] for name, row in table.items()},
                             {"inside h2": 1, "inside h3": 1, "h1 - h2": 2, "h1 - h3": 2, "h2 - h3": 4}, job.log())
            between = [row for name, row in table.items() if " - " in name]
            for transport, _, latency, bandwidth in between:
                self.assertIn("TCP, eth0", transport)
                self.assertGreater(min(latency), 1000 * LATENCY_MS * 0.9)
                self.assertLess(min(latency), 1000 * LATENCY_MS * 3)
                # A busy machine makes it less, nothing makes it more.
                self.assertGreater(max(bandwidth), 0.125 / 8)
                self.assertLess(min(bandwidth), 0.125 * 1.5)
            for name in ("inside h2", "inside h3"):
                self.assertEqual(table[name][0], "shared memory")
            taken = int(re.search(r"measured in (\d+) ms", job.log())[1])
            print_bar("links of 5 ranks on 3 hosts over 1 Gbit/s and 5 ms: measured in, s", taken / 1000, "< 1", taken < 1000,
                      latency_us=[row[2] for row in between], gb_per_s=[row[3] for row in between])

    def test_a_pair_that_cannot_connect(self):
        with Hosts(3) as bed:
            # h2 and h3 send into the void when they mean each other; both still reach h1.
            for host, other in (("h2", "h3"), ("h3", "h2")):
                bed.run(host, "ip", "neigh", "replace", bed.address(other), "lladdr", "02:00:00:00:00:99",
                        "nud", "permanent", "dev", "eth0")
            # With recovery on, mpirun's status would say nothing.
            launcher = [word for word in on_hosts(bed, 1) if word != "--enable-recovery"]
            with Job([*launcher, BINARY, *START, "--start_timeout", "3s"]) as job:
                harness.wait_until(lambda: "cannot start" in job.log() or job.process.poll() is not None, 30,
                                   "the pair is named")
                self.assertRegex(job.log(), r"rank 1 on h2 hears nothing from rank 2 on h3 \(\w+, eth0\): no answer in "
                                            r"time|rank 2 on h3 hears nothing from rank 1 on h2 \(\w+, eth0\): no")
                self.assertIn("btl_tcp_if_include", job.last_word())
                self.assertNotEqual(job.wait(30), 0)


if __name__ == "__main__":
    harness.main(limit_s=110)

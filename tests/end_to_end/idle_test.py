# SPDX-License-Identifier: Apache-2.0
"""A server that nobody asks sleeps: the CPU time of all its ranks, after a start and after an answer."""
import os
import time
import unittest

import harness
from harness import Server, chat_request, read

PERIOD_S = 10
MAX_PERCENT = 2.0  # of one core, over all ranks
SETTLE_S = 1.0     # what still spins after the last work


def cpu_seconds(pids):
    """User and system time of these processes, all threads."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            # The name in brackets may hold anything.
            fields = file.read().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Idle(unittest.TestCase):
    def measure(self, server, when):
        time.sleep(SETTLE_S)
        ranks = server.ranks()
        self.assertEqual(sorted(ranks), [0, 1, 2])
        begin, used = time.monotonic(), cpu_seconds(ranks.values())
        time.sleep(PERIOD_S)
        percent = 100 * (cpu_seconds(ranks.values()) - used) / (time.monotonic() - begin)
        harness.print_bar(f"idle CPU of 3 ranks {when}, % of a core", round(percent, 2),
                          f"< {MAX_PERCENT}", percent < MAX_PERCENT, cores=os.cpu_count())
        self.assertLess(percent, MAX_PERCENT)

    def test_all_ranks_sleep(self):
        with Server(harness.demo_model(), ranks=3) as server:
            self.measure(server, "after the start")
            # Work that every rank took part in must not leave one of them spinning, nor may a client
            # that stays connected.
            answer = read(server.inference.Chat(chat_request("Hello", max_tokens=20), timeout=60))
            self.assertTrue(answer.ids)
            self.measure(server, "after an answer")


if __name__ == "__main__":
    harness.main(limit_s=90)

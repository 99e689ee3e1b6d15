# SPDX-License-Identifier: Apache-2.0
"""A server that nobody asks sleeps: the CPU time of each of its ranks, after a start and after an answer."""
import os
import time
import unittest

import harness
from harness import Server, chat_request, read

PERIOD_S = 10
TARGET_PERCENT = 0.2  # of one core, each rank
MAX_PERCENT = 0.6     # of a machine whose caches others empty
SETTLE_S = 1.0        # what still spins after the last work


def cpu_of(pid):
    """Nanoseconds of each thread."""
    used = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
            nanoseconds = int(file.read().split()[0])
        with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii") as file:
            used[task] = (nanoseconds, file.read().strip())
    return used


class Idle(unittest.TestCase):
    def measure(self, server, when):
        time.sleep(SETTLE_S)
        ranks = server.ranks()
        begin, before = time.monotonic(), {rank: cpu_of(pid) for rank, pid in ranks.items()}
        time.sleep(PERIOD_S)
        passed = time.monotonic() - begin
        percent, busiest = {}, {}
        for rank, pid in ranks.items():
            threads = {task: (100e-9 * (used - before[rank].get(task, (0, ""))[0]) / passed, name)
                       for task, (used, name) in cpu_of(pid).items()}
            percent[rank] = sum(share for share, _ in threads.values())
            busiest[rank] = max(threads.values())
        worst = max(percent, key=percent.get)
        harness.print_bar(f"idle CPU of the busiest of {len(ranks)} ranks {when}, % of a core",
                          round(percent[worst], 3), f"<= {TARGET_PERCENT}", percent[worst] <= TARGET_PERCENT,
                          rank=worst, median=round(sorted(percent.values())[len(percent) // 2], 3),
                          busiest_thread=f"{busiest[worst][1]} {busiest[worst][0]:.3f}", cores=os.cpu_count())
        self.assertLess(percent[worst], MAX_PERCENT)

    def test_all_ranks_sleep(self):
        with Server(harness.demo_model(), ranks=3) as server:
            self.measure(server, "after the start")
            # Work that every rank took part in must not leave one of them spinning, nor may a client
            # that stays connected.
            answer = read(server.inference.Chat(chat_request("Hello", max_tokens=20), timeout=60))
            self.assertTrue(answer.ids)
            self.measure(server, "after an answer")

    def test_many_ranks_sleep(self):
        # Rank 0 hears of each of them.
        with Server(harness.tiny_model(), "--dp", "8", "--pp", "1", ranks=9) as server:
            self.measure(server, "after the start")


if __name__ == "__main__":
    harness.main(limit_s=120)

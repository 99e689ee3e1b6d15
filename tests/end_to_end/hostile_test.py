# SPDX-License-Identifier: Apache-2.0
"""The table of what hostile files, requests and connections come to: a line for each, with the code and the
message that its sender sees, word for word as hostile_messages.json has them (written by `hostile_test.py --record`; gRPC's own
words, which its versions change, are left out). Behind each file `trireme` has ended by itself, with status 2 (1 where the machine is at fault) and one last line;
after each request or connection the server answers as before, and holds no more memory or threads than it may."""
import json
import re
import shutil
import socket
import sys
import tempfile
import unittest
from pathlib import Path

import harness
import hostile_files
import hostile_wire
from harness import Server

# That a server may hold more than before the first case, freed pages of its allocator included; sanitizers hold ten
# times as much of their own.
MEMORY_MB = 400 if harness.PATIENCE == 1 else 8000
THREADS = 40      # likewise; gRPC's grow with the load
MESSAGES = Path(__file__).with_name("hostile_messages.json")


class Words:
    """The exact words of each case."""

    def __init__(self):
        self.record = "--record" in sys.argv
        if self.record:
            sys.argv.remove("--record")
        self.known = {} if self.record else json.loads(MESSAGES.read_text())

    def agree(self, kind, case, message):
        """What differs from machine to machine, or from run to run, is #; how a rank is named is tested elsewhere."""
        for differs in (r"(?<=cannot load: rank 1)[^:]*(?=: )", rf"\b{re.escape(socket.gethostname())}\b",
                        r"\d+(\.\d+)? [KMGT]iB", r"(?<=twice-)\d+", r"(?<=num_blocks )\d+(?= would fit)"):
            message = re.sub(differs, "#", message)
        if self.record:
            self.known[f"{kind}: {case}"] = message
            MESSAGES.write_text(json.dumps(self.known, indent=1, ensure_ascii=False) + "\n")
        return self.known.get(f"{kind}: {case}") == message


words = Words()


def show(kind, case, code, message, ok):
    print(f"{'ok ' if ok else 'BAD'} | {kind:<11} | {case:<40} | {code:<19} | {message[:150]}", flush=True)


class Table(unittest.TestCase):
    def test_files(self):
        for kind, case, make, part, *status in hostile_files.FILES:
            status = status[0] if status else 2
            folder = tempfile.mkdtemp(prefix="trireme-hostile-")
            try:
                end = harness.run(*make(folder), seconds=40)
            finally:
                shutil.rmtree(folder)
            message = (end.lines[-1] if end.lines else "").replace(folder, "…")
            ok = (end.status == status and part in message and message.startswith("trireme: ") and len(message) < 2500
                  and words.agree(kind, case, message))
            show(kind, case, f"status {end.status}", message.removeprefix("trireme: "), ok)
            with self.subTest(case):
                self.assertTrue(ok, f"expected status {status} and: {words.known.get(f'{kind}: {case}')}\n{end.log[-3000:]}")

    def test_wire(self):
        with Server(harness.tiny_model(), ranks=3) as server:
            hostile_wire.check_serves(server)
            pid = server.ranks()[0]
            memory, threads = resident_mb(pid), thread_count(pid)
            for kind, case, attack, code, part in hostile_wire.WIRE:
                with self.subTest(case):
                    found, message = attack(server)
                    hostile_wire.check_serves(server)
                    more_memory, more_threads = resident_mb(pid) - memory, thread_count(pid) - threads
                    ok = (found == code and part in message and more_memory < MEMORY_MB and more_threads < THREADS
                          and (not part or words.agree(kind, case, message)))
                    show(kind, case, found, message, ok)
                    self.assertTrue(ok, f"expected {code}, {part}: found {found}, {message}; "
                                        f"{more_memory} MB and {more_threads} threads more than at first")
            self.assertEqual(listening_ports(pid), {int(server.address.rsplit(':', 1)[1])},
                             "once every rank is there, the control port is closed")
            show("connection", "the control port of a running job", "CLOSED", "nothing listens there any more", True)
            server.wait_free()
            self.assertEqual(server.drain(), 0)


def resident_mb(pid):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) // 1024


def thread_count(pid):
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def listening_ports(pid):
    """TCP ports of 127.0.0.1 that the process itself listens on; those of MPI are elsewhere."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and fields[9] in sockets and address.endswith("0100007F"):
                ports.add(int(port, 16))
    return ports


if __name__ == "__main__":
    harness.main(limit_s=420)

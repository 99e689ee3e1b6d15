# SPDX-License-Identifier: Apache-2.0
"""What a stranger on the network does to a job's control port, from the moment that it opens: run in the
network namespace of rank 0's host, until its standard input ends. Prints one JSON object then: what it tried, and
what came of it.

    control_attack.py MARK LIMIT_S      MARK: what the environment of the job's processes carries
"""
import json
import os
import re
import socket
import sys
import threading
import time

MPI_PORTS = range(20000, 20200)  # of the test that starts this: left alone
OPEN = 300                       # connections that are kept open
CLOSED_PAUSE_S = 0.002           # between attempts at a port that has closed
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(189)
KINDS = {
    "half-open": b"",
    "half a hello": HELLO[:6],
    "a hello of zeros": HELLO,
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "an oversized record": b"\x16\x03\x03\xff\xff" + b"x" * 1000,
    "an oversized frame": b"\x7f\xff\xff\xff" + b"x" * 1000,
    "a truncated frame": b"\0\0\0\x64hello",
    "data before the hello": b"\x17\x03\x03\x40\x00" + b"x" * 900,
}


def pids(mark):
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read()
            with open(f"/proc/{entry}/comm") as file:
                name = file.read().strip()
        except OSError:
            continue
        if mark.encode() in environment and b"OMPI_COMM_WORLD_RANK=0\0" in environment and name == "trireme":
            yield int(entry)


def listening(pid):
    """TCP ports that this process listens on, MPI's left out."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        with open(f"/proc/{pid}/net/tcp") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        with open(f"/proc/{pid}/net/tcp6") as file:
            rows += [line.split() for line in file.readlines()[1:]]
    except OSError:
        return set()
    inodes = {match[1] for match in (re.fullmatch(r"socket:\[(\d+)\]", link) for link in links) if match}
    ports = {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}
    return {port for port in ports if port not in MPI_PORTS}


def main():
    mark, limit_s = sys.argv[1], float(sys.argv[2])
    told = threading.Event()
    threading.Thread(target=lambda: (os.read(0, 1), told.set()), daemon=True).start()
    end = time.monotonic() + limit_s
    goes_on = lambda: not told.is_set() and time.monotonic() < end  # noqa: E731
    victim, port = None, None
    while port is None and goes_on():
        victim = victim or next(pids(mark), None)
        port = next(iter(listening(victim)), None) if victim else None
        time.sleep(0.001)
    counts = {"accepted": 0, "refused": 0, **dict.fromkeys(KINDS, 0)}
    kept, names, number = [None] * OPEN, list(KINDS), 0
    opened = time.monotonic()
    closed = None
    while port is not None and goes_on():
        connection = socket.socket()
        connection.settimeout(1)
        try:
            connection.connect(("127.0.0.1", port))
            name = names[number % len(names)]
            counts["accepted"] += 1
            counts[name] += 1
            connection.sendall(KINDS[name])
            closed = None
        except OSError:
            counts["refused"] += 1
            closed = closed or time.monotonic()
            time.sleep(CLOSED_PAUSE_S)
        old, kept[number % OPEN] = kept[number % OPEN], connection
        if old is not None:
            old.close()
        number += 1
    print(json.dumps({"port": port, "open_s": round((closed or time.monotonic()) - opened, 3), **counts}), flush=True)


if __name__ == "__main__":
    main()

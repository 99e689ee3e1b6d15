# SPDX-License-Identifier: Apache-2.0
"""Processes of a test: known by a mark in their environment, which their children inherit, and ended by id."""
import os
import signal
import time
from pathlib import Path

MARK = "TRIREME_TEST_MARK"


def environment_of(pid):
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return {}
    return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)


def marked(mark):
    """The environments of all living processes with this mark, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            environment = environment_of(int(entry))
            if environment.get(MARK) == mark:
                found[int(entry)] = environment
    return found


def rank_of(environment):
    """As the launcher of any MPI tells it; None for what is no rank."""
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"),
                       ("PMIX_RANK", "SLURM_PROCID")):
        if size in environment and rank in environment:
            return int(environment[rank])
    return None


def ranks_of(processes):
    """Pids of trireme by rank, from environments by pid."""
    return {rank: pid for pid, environment in processes.items()
            if (rank := rank_of(environment)) is not None and
            Path(command_line(pid).split(" ")[0]).name == "trireme"}


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def end_processes(pids, seconds=5):
    """SIGKILL by id, and their end awaited."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)

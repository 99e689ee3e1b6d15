# SPDX-License-Identifier: Apache-2.0
"""A Slurm cluster of the distribution's slurmctld, slurmd and munged, without systemd, for one test.

    with Slurm(3) as slurm:                   # n1 n2 n3, all of them this machine
        job = slurm.submit("launch/slurm.sbatch", cwd=FOLDER)
        slurm.wait_state(job, "RUNNING")
        slurm.run("scancel", job)
    Slurm(bed=hosts)                          # a node on each host of hosts.py; commands run on the first one

Everything lies in one folder and carries one mark; close() ends all of it and returns who was left.
"""
import os
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import uuid
from pathlib import Path

from marked import MARK, command_line, end_processes, marked, ranks_of

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "sinfo")
START_S = 20
COMMON = """ClusterName=test
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=pmix
ReturnToService=2
KillWait=2
# Per node: Slurm's PMIx makes folders of the same name for each.
TmpFS={folder}/tmp/%n
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def need_slurm():
    """Skips the test where there can be no cluster."""
    if os.geteuid() != 0:
        raise unittest.SkipTest("a Slurm cluster for a test needs root")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise unittest.SkipTest(f"{tool} is absent; tests/run installs slurm-wlm and munge")


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    def __init__(self, count=3, bed=None):
        need_slurm()
        self._bed = bed
        self.nodes = list(bed.names) if bed else [f"n{number}" for number in range(1, count + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="trireme-slurm-"))
        self.mark = uuid.uuid4().hex
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), MARK: self.mark}
        if bed:
            self.environment |= bed.environment
        self._daemons = []
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- start ----

    def _prepare(self):
        for name in ("state", "log", *(f"{kind}/{node}" for kind in ("tmp", "spool") for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        text = COMMON.format(folder=self.folder)
        size = "CPUs=2 RealMemory=500 State=UNKNOWN"
        if self._bed:
            text += f"SlurmctldHost={self.nodes[0]}({self._bed.address(self.nodes[0])})\n"
            for node in self.nodes:
                text += f"NodeName={node} NodeAddr={self._bed.address(node)} {size}\n"
        else:
            here = socket.gethostname()
            ports = _free_ports(1 + len(self.nodes))
            text += f"SlurmctldHost={here}(127.0.0.1)\nSlurmctldPort={ports[0]}\n"
            for node, port in zip(self.nodes, ports[1:]):
                text += f"NodeName={node} NodeHostname={here} NodeAddr=127.0.0.1 Port={port} {size}\n"
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)

    def _daemon(self, node, *command):
        name = Path(command[0]).name
        with open(self.folder / f"log/{name}-{node}.out", "wb") as log:
            prefix = self._bed.on(node) if self._bed else []
            self._daemons.append(subprocess.Popen(
                [*prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment}, start_new_session=True))

    def _start(self):
        folder, conf = self.folder, self.folder / "slurm.conf"
        self._daemon(self.nodes[0], "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
                     f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
                     f"--log-file={folder}/log/munged.log", f"--seed-file={folder}/munged.seed")
        self._wait((folder / "munge.socket").exists, "munged listens")
        self._daemon(self.nodes[0], "slurmctld", "-D", "-f", conf)
        for node in self.nodes:
            self._daemon(node, "slurmd", "-D", "-f", conf, "-N", node)

        def idle():
            states = self.run("sinfo", "-h", "-N", "-o", "%t", check=False).split()
            return states == ["idle"] * len(self.nodes)
        self._wait(idle, "every node is idle")

    def _wait(self, condition, what, seconds=START_S):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s still not: {what}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self):
        return "\n".join(f"---- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
                         for path in sorted((self.folder / "log").iterdir()))

    # ---- use ----

    def command(self, *command):
        """What to run for a Slurm command; with self.environment."""
        prefix = self._bed.on(self.nodes[0]) if self._bed else []
        return [*prefix, *map(str, command)]

    def run(self, *command, check=True, seconds=30, cwd=None):
        """The command's stdout."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=seconds, cwd=cwd,
                              env={**os.environ, **self.environment})
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n"
                                 f"{done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *sbatch_arguments, cwd=None):
        """The job's id."""
        return self.run("sbatch", "--parsable", *sbatch_arguments, cwd=cwd).strip()

    def state(self, job):
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT …"""
        for word in self.run("scontrol", "show", "job", job).split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
        raise AssertionError(f"Slurm knows no job {job}")

    def wait_state(self, job, *states, seconds=60):
        self._wait(lambda: self.state(job) in states, f"job {job} is {' or '.join(states)}", seconds)
        return self.state(job)

    def ranks(self):
        """Pids of the ranks of every job, by rank."""
        return ranks_of(marked(self.mark))

    def members(self):
        """Command lines of all processes of jobs: of ours, of mpirun, of Slurm's step daemons."""
        daemons = {daemon.pid for daemon in self._daemons}
        found = {pid: command_line(pid) for pid in marked(self.mark) if pid not in daemons}
        # slurmctld's own child.
        return {pid: line for pid, line in found.items() if line and not line.startswith(": slurmscriptd")}

    # ---- the end ----

    def close(self):
        """Ends everything; returns the command lines of jobs' processes that were still there."""
        left = []
        if len(self._daemons) > 2:
            self.run("scancel", "-u", "root", check=False)
            end = time.monotonic() + 8
            while self.run("squeue", "-h", check=False).strip() and time.monotonic() < end:
                time.sleep(0.1)
            # Step daemons end a moment after their steps.
            while self.members() and time.monotonic() < end:
                time.sleep(0.1)
            left = list(self.members().values())
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(5)
        end_processes(marked(self.mark))
        self._daemons = []
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

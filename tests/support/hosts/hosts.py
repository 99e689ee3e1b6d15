# SPDX-License-Identifier: Apache-2.0
"""Hosts h1, h2, … of one test: network namespaces with a name, an address and a link of their own, joined by
a switch of a given rate and latency. They share the file system and the process ids of this machine.

    with Hosts(3, rate_mbit=1000, latency_ms=5) as hosts:
        hosts.run("h1", "hostname")                          # h1
        Job([*hosts.on("h1"), "mpirun", *hosts.mpirun_options(2), PROGRAM], environment=hosts.environment)
        hosts.pull("h2")                                     # its cable; hosts.plug("h2") puts it back

Names of namespaces carry this process's id. What a test that was killed left behind is removed by the next
one; close() ends every process that is still in a namespace and returns what it had to end.
"""
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from marked import alive, command_line, end_processes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
AGENT = HERE / "nsagent"
BUILD = Path(os.environ.get("TRIREME_BUILD_DIR", ROOT / "build"))
PREFIX = "trireme-test"
NAMESPACES = Path("/run/netns")
MAX_HOSTS = 200


def need_hosts():
    """Skips the test where there can be no hosts."""
    if os.geteuid() != 0:
        raise unittest.SkipTest("network namespaces need root")
    for tool in ("ip", "tc", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            raise unittest.SkipTest(f"{tool} is absent; tests/run installs iproute2 and util-linux")
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    if probe.returncode:
        raise unittest.SkipTest(f"this machine makes no namespaces: {probe.stderr.strip()}")


def _tool(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def _pids_in(namespace):
    return [int(pid) for pid in _tool("ip", "netns", "pids", namespace).split() if alive(pid)]


def _remove(namespace):
    end_processes(_pids_in(namespace))
    _tool("ip", "netns", "del", namespace)


def remove_forgotten():
    """Namespaces of tests that were killed."""
    if not NAMESPACES.exists():
        return
    for name in os.listdir(NAMESPACES):
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-.*", name)
        if owner and not alive(int(owner[1])):
            try:
                _remove(name)
            except OSError:  # another test was faster
                pass


class Hosts:
    """rate_mbit None: as fast as the kernel is; latency_ms is one way, between any two hosts."""

    _beds = 0

    def __init__(self, count, rate_mbit=None, latency_ms=0.0):
        assert 1 <= count <= MAX_HOSTS
        need_hosts()
        remove_forgotten()
        Hosts._beds += 1
        self.names = [f"h{number}" for number in range(1, count + 1)]
        self._tag = f"{PREFIX}-{os.getpid()}-{Hosts._beds}"
        self._switch_namespace = f"{self._tag}-switch"
        self._switch = None
        self._namespaces = []
        self.folder = Path(tempfile.mkdtemp(prefix="trireme-hosts-"))
        self.environment = {"TRIREME_TEST_BED": str(self.folder)}
        try:
            self._make_hosts()
            if latency_ms:
                self._join_by_program(rate_mbit or 0, latency_ms)
            else:
                self._join_by_bridge(rate_mbit)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- making ----

    def _namespace(self, name):
        _tool("ip", "netns", "add", name)
        self._namespaces.append(name)
        _tool("ip", "-n", name, "link", "set", "lo", "up")

    def address(self, host):
        return f"10.77.0.{self.names.index(host) + 1}"

    def namespace(self, host):
        return f"{self._tag}-{host}"

    def _make_hosts(self):
        self._namespace(self._switch_namespace)
        table = "127.0.0.1 localhost\n" + "".join(f"{self.address(host)} {host}\n" for host in self.names)
        (self.folder / "hosts").write_text(table)
        for host in self.names:
            self._namespace(self.namespace(host))
            (self.folder / host).write_text(self.namespace(host))

    def _raise_link(self, host):
        _tool("ip", "-n", self.namespace(host), "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _tool("ip", "-n", self.namespace(host), "link", "set", "eth0", "up")

    def _join_by_bridge(self, rate_mbit):
        switch = self._switch_namespace
        _tool("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _tool("ip", "-n", switch, "link", "set", "br0", "up")
        for host in self.names:
            _tool("ip", "-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns",
                  self.namespace(host))
            _tool("ip", "-n", switch, "link", "set", host, "master", "br0", "up")
            self._raise_link(host)
        if rate_mbit:
            for host in self.names:
                self.set_link(host, rate_mbit)

    def _join_by_program(self, rate_mbit, latency_ms):
        program = BUILD / "link_switch"
        if not os.access(program, os.X_OK):
            raise AssertionError(f"{program} is not built")
        devices = [f"port{number}" for number in range(len(self.names))]
        self._switch = subprocess.Popen(
            ["nsenter", f"--net={NAMESPACES / self._switch_namespace}", str(program), *devices],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._switch.stdout.readline() == "ready\n", "link_switch did not start"
        for host, device in zip(self.names, devices):
            _tool("ip", "-n", self._switch_namespace, "link", "set", device, "name", "eth0", "mtu", "9000",
                  "netns", self.namespace(host))
            self._raise_link(host)
            self.set_link(host, rate_mbit, latency_ms)

    # ---- links ----

    def _order(self, verb, host, *values):
        order = " ".join(map(str, (verb, self.names.index(host), *values)))
        self._switch.stdin.write(order + "\n")
        self._switch.stdin.flush()
        answer = self._switch.stdout.readline()
        assert answer == "ok\n", f"link_switch on {order!r}: {answer!r}"

    def set_link(self, host, rate_mbit, latency_ms=0.0):
        """Of one host, in both directions. Between two hosts half of either one's latency adds up."""
        if self._switch:
            self._order("link", host, int(latency_ms * 500), rate_mbit)
            return
        assert not latency_ms, "latency needs Hosts(…, latency_ms=…)"
        for namespace, device in ((self._switch_namespace, host), (self.namespace(host), "eth0")):
            _tool("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", "rate",
                  f"{rate_mbit}mbit", "burst", "32kb", "latency", "50ms")

    def pull(self, host):
        """The cable: what is sent is lost, and nobody is told. nsagent fails as ssh would."""
        (self.folder / f"{host}.pulled").touch()
        if self._switch:
            self._order("pull", host)
        else:
            _tool("ip", "-n", self._switch_namespace, "link", "set", host, "down")

    def plug(self, host):
        (self.folder / f"{host}.pulled").unlink(missing_ok=True)
        if self._switch:
            self._order("plug", host)
        else:
            _tool("ip", "-n", self._switch_namespace, "link", "set", host, "up")

    # ---- use ----

    def on(self, host):
        """What to put before a command to run it on a host, with this environment; signals reach it."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(host)}", "unshare", "--uts", "--mount", "bash",
                "-c", 'hostname "$0" && mount --bind "$1/hosts" /etc/hosts && shift && exec "$@"', host,
                str(self.folder)]

    def run(self, host, *command, seconds=30, **options):
        return subprocess.run([*self.on(host), *map(str, command)], capture_output=True, text=True,
                              timeout=seconds, env={**os.environ, **self.environment}, **options)

    def mpirun_options(self, ranks_per_host):
        """For Open MPI 4 on a host of ours: the hosts, and nsagent in place of ssh. ranks_per_host: of all, or a list."""
        counts = ranks_per_host if isinstance(ranks_per_host, list) else [ranks_per_host] * len(self.names)
        slots = ",".join(f"{host}:{count}" for host, count in zip(self.names, counts))
        return ["--host", slots, "--bind-to", "none", "--mca", "plm_rsh_agent", str(AGENT)]

    def pids(self, host):
        return _pids_in(self.namespace(host))

    def listeners(self, host):
        """Who listens on a host for TCP: {"address", "port", "pid", "program"} each."""
        found = []
        for line in self.run(host, "ss", "-Hlntp").stdout.splitlines():
            address, port = line.split()[3].rsplit(":", 1)
            users = re.findall(r'\("([^"]*)",pid=(\d+)', line)
            for program, pid in users or [("", "0")]:
                found.append({"address": address, "port": int(port), "pid": int(pid), "program": program})
        return found

    # ---- the end ----

    def close(self):
        """Removes everything; returns the command lines of processes that were still there."""
        left = []
        for namespace in self._namespaces:
            if namespace != self._switch_namespace:
                pids = _pids_in(namespace)
                left += [command_line(pid) for pid in pids]
                end_processes(pids)
        if self._switch:
            self._switch.stdin.close()
            self._switch.wait(10)
            self._switch.stdout.close()
            self._switch = None
        for namespace in self._namespaces:
            _remove(namespace)
        self._namespaces = []
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

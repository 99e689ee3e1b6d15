# SPDX-License-Identifier: Apache-2.0
"""Jobs over several hosts: network namespaces joined by links of 1 Gbit/s and 5 ms."""
import os
import signal
import unittest

import harness
import hosts
from harness import Server, Stream, chat_request, read
from hosts import Hosts

QUESTION = "Count from one to twenty in words."
# MPI's own listeners, told from ours by their ports.
MPI_PORTS = range(20000, 20200)  # the kernel chooses above 32768
MPI_PORT_OPTIONS = [word for family in ("v4", "v6") for word in (
    "--mca", f"btl_tcp_port_min_{family}", MPI_PORTS.start,
    "--mca", f"btl_tcp_port_range_{family}", len(MPI_PORTS))]
# From 64 KiB on MPI makes a rendezvous: three trips instead of one.
SLOW_LINK_OPTIONS = ["--mca", "btl_tcp_eager_limit", 4 << 20, "--mca", "btl_tcp_rndv_eager_limit", 4 << 20,
                     "--mca", "btl_tcp_max_send_size", 8 << 20]


def on_hosts(bed, ranks_per_host=2):
    """What starts a job over all hosts, from the first of them."""
    variables = [f"{name}={value}" for name, value in bed.environment.items()]
    root = ["--allow-run-as-root"]
    return ["env", *variables, "setpriv", "--pdeathsig", "TERM", *bed.on(bed.names[0]), "mpirun", *root,
            "--enable-recovery", *bed.mpirun_options(ranks_per_host), *SLOW_LINK_OPTIONS, *MPI_PORT_OPTIONS]


def host_of(pid):
    """The namespace of a process, as the kernel names it."""
    return os.readlink(f"/proc/{pid}/ns/net")


class ThreeHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        hosts.need_hosts()

    def setUp(self):
        self.model = harness.demo_model()
        self.bed = Hosts(3, rate_mbit=1000, latency_ms=5)
        self.addCleanup(self.bed.close)

    def test_tokens_and_listeners(self):
        requests = [chat_request(f"{QUESTION} {number}", max_tokens=20, ignore_eos=True) for number in range(3)]
        with Server(self.model, ranks=1) as alone:
            expected = [read(alone.inference.Chat(request, timeout=60)).ids for request in requests]
        socket_path = self.bed.folder / "client"
        # A Unix socket is the same on every host of this machine, so this process can ask.
        with Server(self.model, "--pp", "5", launcher=on_hosts(self.bed), listen=f"unix:{socket_path}") as server:
            self.assertEqual(len(server.ranks()), 6)
            self.assertEqual(len({host_of(pid) for pid in server.ranks().values()}), 3)
            placement = server.cluster.GetPlacement(harness.api().pb.GetPlacementRequest(), timeout=5)
            self.assertEqual(len(placement.replicas[0].stages), 5)
            streams = [Stream(server.inference.Chat(request, timeout=60)) for request in requests]
            self.assertEqual([stream.result().ids for stream in streams], expected)
            self.assertEqual(server.drain(), 0, server.log())
        self.assertEqual(self.bed.close(), [])

    def test_listeners(self):
        # On each rank: MPI's own. On rank 0 beside them the client port; the control port closes when every
        # worker has come.
        with Server(self.model, launcher=on_hosts(self.bed)) as server:
            ranks = server.ranks()
            ours, of_mpi = [], 0
            for host in self.bed.names:
                for listener in self.bed.listeners(host):
                    if listener["pid"] not in ranks.values():
                        self.assertIn(listener["program"], ("mpirun", "orted"))
                    elif listener["port"] in MPI_PORTS:
                        of_mpi += 1
                    else:
                        ours.append(listener)
            self.assertGreaterEqual(of_mpi, len(ranks))
            self.assertEqual([(listener["pid"], listener["port"]) for listener in ours],
                             [(ranks[0], int(server.address.rsplit(":", 1)[1]))])
            self.assertIn("127.0.0.1", ours[0]["address"])
            answer = self.bed.run("h1", harness.BINARY, "chat", "--server", server.address, "--temperature", 0,
                                  "What is the capital of France?")
            self.assertIn("Paris", answer.stdout, answer.stderr)

    def run_over(self, *options):
        """A Server's launcher: trireme-run on h1."""
        return ["env", *(f"{name}={value}" for name, value in self.bed.environment.items()), "setpriv", "--pdeathsig",
                "TERM", *self.bed.on("h1"), harness.RUN, "--agent", hosts.AGENT, *options, "--binary"]

    def test_trireme_run_finds_slow_links_and_drains_on_another_host(self):
        # Rank 0 is on h2: its status is read, and it is asked to end, through the agent.
        with Server(self.model, launcher=self.run_over("--host", "h2:2,h3:2"),
                    listen=f"unix:{self.bed.folder}/client") as server:
            self.assertIn("btl_tcp_eager_limit", server.log())
            self.assertEqual({host_of(pid) for pid in server.ranks().values()},
                             {host_of(self.bed.pids(host)[-1]) for host in ("h2", "h3")})
            self.assertEqual(len(server.ranks()), 5)
            stream = Stream(server.inference.Chat(chat_request(QUESTION, max_tokens=30, ignore_eos=True))).wait_begun()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(len(stream.result().ids), 30)
            self.assertEqual(server.wait(45), 0, server.log())
        self.assertEqual(self.bed.close(), [])

    def test_a_lost_host_is_left_out_by_the_relaunch(self):
        request = chat_request(QUESTION, max_tokens=8)
        with Server(self.model, "--pp", "2", "--dead_after", "3s", launcher=self.run_over("--relaunch", "1", "--host", "h1,h3"),
                    listen=f"unix:{self.bed.folder}/client") as server:
            expected = read(server.inference.Chat(request, timeout=60)).ids
            stream = Stream(server.inference.Chat(chat_request(QUESTION, max_tokens=4000, ignore_eos=True))).wait_begun()
            self.bed.pull("h3")
            self.assertEqual(stream.wait_end(30).error.code().name, "UNAVAILABLE")
            self.assertIn("host h3", stream.error.details())
            harness.wait_until(lambda: server.log().count("listening on") == 2, 90, "it answers again, on one host")
            self.assertIn("cannot reach host h3", server.log())
            inference, _ = server.connect()
            self.assertEqual(read(inference.Chat(request, timeout=60)).ids, expected)
            self.bed.plug("h3")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(45), 0, server.log())

    def test_unreachable_hosts_are_named(self):
        self.bed.pull("h3")
        done = self.bed.run("h1", harness.RUN, "--agent", hosts.AGENT, "--host", "h1,h3", "serve", "--model", self.model)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot reach host h3", done.stderr)

    def test_two_jobs_on_one_host(self):
        request = chat_request(QUESTION, max_tokens=20, ignore_eos=True)
        on_h1 = [*self.bed.on("h1"), *harness.mpirun(3)]
        with Server(self.model, launcher=on_h1, listen=f"unix:{self.bed.folder}/first") as first, \
                Server(self.model, launcher=on_h1, listen=f"unix:{self.bed.folder}/second") as second:
            streams = [Stream(server.inference.Chat(request, timeout=60)) for server in (first, second)]
            ids = [stream.result().ids for stream in streams]
            self.assertEqual(ids[0], ids[1])
            self.assertEqual([server.drain() for server in (first, second)], [0, 0])
        self.assertEqual(self.bed.close(), [])


if __name__ == "__main__":
    harness.main(limit_s=220)

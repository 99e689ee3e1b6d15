#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""trireme probe as its users start it: alone, over MPI, of files, and what it says of bad ones."""
import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("TRIREME_BUILD_DIR", ROOT / "build"))
BINARY = str(BUILD / "trireme")
TOPOLOGIES = ROOT / "tests/data/topologies"
LIMIT_S = 60
OWN_CACHE = tempfile.TemporaryDirectory(prefix="trireme-probe-")  # what is measured here is not for the user's jobs


def run(*arguments, ranks=None, profile=None, command="probe", cache=None):
    command = [BINARY, command, *map(str, arguments)]
    if ranks:
        command = [str(ROOT / "tests/support/mpirun"), "-n", str(ranks), *command]
    environment = dict(os.environ)
    if profile:
        environment["TRIREME_FAKE_NVML_PROFILE"] = str(profile)
    environment["XDG_CACHE_HOME"] = str(cache or OWN_CACHE.name)
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)


class ProbeTest(unittest.TestCase):
    def test_this_machine(self):
        done = run()
        self.assertEqual(done.returncode, 0, done.stderr)
        for line in done.stdout.splitlines():
            self.assertLessEqual(len(line), 100, line)
        topology = json.loads(run("--json").stdout)
        self.assertEqual(len(topology["nodes"]), 1)
        device = topology["ranks"][0]["device"]
        self.assertGreater(int(device["memory_bytes"]), 0)

    def test_every_rank_is_joined(self):
        done = run("--json", ranks=4)
        self.assertEqual(done.returncode, 0, done.stderr)
        topology = json.loads(done.stdout)
        gpus = any(rank["device"]["kind"] == "DEVICE_KIND_CUDA" for rank in topology["ranks"])
        if not gpus:
            self.assertEqual([rank["rank"] for rank in topology["ranks"]], [1, 2, 3])
        self.assertEqual(len(topology["nodes"]), 1, "three ranks of one host are one node")
        self.assertNotIn("machine", topology["ranks"][0])

    def test_devices_are_measured(self):
        topology = json.loads(run("--json", ranks=3).stdout)
        if any(rank["device"]["kind"] == "DEVICE_KIND_CUDA" for rank in topology["ranks"]):
            self.skipTest("ranks are shown as the CPUs that they are only where there is no GPU")
        for rank in topology["ranks"]:
            device = rank["device"]
            self.assertTrue(device["speed_measured"])
            self.assertGreater(device["speed"]["memory_bandwidth_bytes_per_s"], 1e8)
            self.assertGreater(device["speed"]["flops_16bit_per_s"], 1e9)
        rows = topology["all_reduce_tables"][0]["rows"]
        self.assertEqual([row["tp"] for row in rows], [2])
        self.assertEqual(topology["islands"][0]["ranks"], [1, 2])

    def test_a_start_measures_once(self):
        with tempfile.TemporaryDirectory(prefix="trireme-probe-") as folder:
            def plan():
                done = run("--model", ROOT / "tests/data/tiny-chatglm3", ranks=3, command="plan", cache=folder)
                self.assertEqual(done.returncode, 0, done.stderr)
                return re.search("Devices, measured (.*)", done.stderr).group(1), done.stderr

            first = re.fullmatch("in ([0-9]+) ms", plan()[0])
            self.assertTrue(first)
            taken = int(first.group(1))
            print(json.dumps({"bar": "ms to measure two ranks' devices and their all-reduce", "value": taken,
                              "target": "<= 1000", "ok": taken <= 1000}))
            self.assertLess(taken, 30000)
            # What seems slow is not kept: on a busy machine a start or two may measure again.
            if not any("just now" in plan()[0] for _ in range(4)):
                self.skipTest("four starts found a rank far under the other: the machine is too busy")
            (Path(folder) / "trireme/speeds.json").write_text("no JSON")
            words, log = plan()
            self.assertIn("cannot use the speeds in", log)
            self.assertRegex(words, "in [0-9]+ ms")

    def test_gpus_of_the_ranks_nodes(self):
        library = BUILD / "libfake_nvml.so"
        done = run("--json", "--nvml_library", library, "--sysfs_root", "/does/not/exist", ranks=3,
                   profile=TOPOLOGIES / "four-gpus-profile.yaml")
        self.assertEqual(done.returncode, 0, done.stderr)
        topology = json.loads(done.stdout)
        self.assertEqual([rank["device"]["name"] for rank in topology["ranks"]], ["NVIDIA H100 80GB HBM3"] * 4)
        self.assertEqual(topology["islands"][0]["link"]["nvlinks"], 18)

    def test_a_file_needs_no_job(self):
        done = run("--topology", TOPOLOGIES / "hgx-4gpu-one-lost.xml", ranks=3)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("Ways between devices"), 1, "rank 0 alone speaks")
        self.assertIn("none of its 18 NVLinks is up", done.stdout)

    def test_bad_files(self):
        for arguments, words in ((["--topology", "/does/not/exist"], "cannot open the topology"),
                                 (["--topology", ROOT / "README.md"], "cannot read the topology"),
                                 (["--topology", TOPOLOGIES], "cannot open the topology"),
                                 (["--nccl_xml", "/does/not/exist/x.xml"], "cannot write")):
            done = run(*arguments)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(words, done.stderr.splitlines()[-1])
            self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""trireme probe as its users start it: alone, over MPI, of files, and what it says of bad ones."""
import json
import os
import subprocess
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("TRIREME_BUILD_DIR", ROOT / "build"))
BINARY = str(BUILD / "trireme")
TOPOLOGIES = ROOT / "tests/data/topologies"
LIMIT_S = 60


def run(*arguments, ranks=None, profile=None):
    command = [BINARY, "probe", *map(str, arguments)]
    if ranks:
        command = [str(ROOT / "tests/support/mpirun"), "-n", str(ranks), *command]
    environment = dict(os.environ)
    if profile:
        environment["TRIREME_FAKE_NVML_PROFILE"] = str(profile)
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

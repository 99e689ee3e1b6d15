# SPDX-License-Identifier: Apache-2.0
"""The program over two emulated GPUs (tests/support/cuda_emulation): the same tokens as on the CPU, whatever
ranks have one, and the way of tensors that the log tells."""
import json
import os
import re
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import harness

BUILD = Path(harness.BINARY).parent
LIBRARIES = Path(tempfile.mkdtemp(prefix="trireme-nccl-"))
FLAGS = ["--dtype", "fp32", "--context", "80", "--max_batch_tokens", "32", "--max_sequences", "4", "--max_tokens", "12", "--ignore_eos", "--logprobs", "2",
         "--prompt_ids", "5,9,33,12,7,81,4", "--prompt_ids", ",".join(map(str, range(3, 43)))]


class EmulatedGpus(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = harness.tiny_model("tiny-chatglm3")
        (LIBRARIES / "libnccl.so.2").symlink_to(BUILD / "libfake_nccl.so")
        cls.base = cls.generate(harness.BINARY)[0]

    @classmethod
    def run_program(cls, binary, *arguments, ranks=1, nccl=22809, libraries=LIBRARIES):
        """nccl: the version of the library that stands for NCCL's."""
        os.environ["LD_LIBRARY_PATH"] = str(libraries)
        os.environ["FAKE_NCCL_VERSION"] = str(nccl)
        before, harness.BINARY = harness.BINARY, str(binary)
        try:
            return harness.run("generate", "--model", cls.model, "--json", *arguments, ranks=ranks, seconds=100)
        finally:
            harness.BINARY = before

    @classmethod
    def generate(cls, binary, *arguments, ranks=1, nccl=22809):
        """The answers, and the log."""
        end = cls.run_program(binary, *FLAGS, *arguments, ranks=ranks, nccl=nccl)
        assert end.status == 0, f"status {end.status}:\n{end.log}"
        return [json.loads(line) for line in end.out.splitlines()], end.log

    def check(self, *arguments, ranks=1, nccl=22809):
        answers, log = self.generate(BUILD / "trireme_emulated", *arguments, ranks=ranks, nccl=nccl)
        for alone, other in zip(self.base, answers, strict=True):
            for step, best in enumerate(alone["logprobs"]):
                self.assertAlmostEqual(other["logprobs"][step][0]["logprob"], best[0]["logprob"], delta=1e-3)
                if best[0]["logprob"] - best[1]["logprob"] < 4e-3:
                    break  # rounding may choose, and what follows differs
                self.assertEqual(other["output_ids"][step], alone["output_ids"][step])
        return log

    def test_one_gpu(self):
        self.assertIn("emulated", self.check())

    def test_two_gpus_sum_by_nccl(self):
        log = self.check("--tp", "2")
        self.assertIn("ranks 1 2 go by NCCL 2.28.9", log)
        self.assertRegex(log, r"\n  emulated.* TP2 [0-9.]+\n")  # what was measured of them
        self.assertNotIn("through host memory", log)

    def test_two_gpus_sum_in_their_memory(self):
        """Steps of decode are recordings then, whose sums no host takes part in."""
        for flags in (["--peer_sums", "always"], ["--deterministic"]):
            log = self.check("--tp", "2", *flags)
            self.assertIn("sums of ranks 1 2 go by the memory of their GPUs, of up to 256.0 KiB at once", log)
            self.assertIn("ranks 1 2 go by NCCL 2.28.9", log)
        self.assertNotIn("memory of their GPUs", self.check("--tp", "2", "--peer_sums", "never"))

    def test_ranks_of_mpi_sum_in_their_gpus_memory(self):
        log = self.check("--tp", "2", ranks=3, nccl=21300)
        self.assertIn("sums of ranks 1 2 go by the memory of their GPUs", log)
        self.assertIn("tensors of ranks 1 2 go through host memory", log)

    def test_two_stages_hand_on_by_nccl(self):
        self.assertIn("go by NCCL", self.check("--pp", "2"))

    def test_a_cpu_rank_in_the_group(self):
        log = self.check("--tp", "3")
        self.assertIn("ranks 1 2 3 go through host memory", log)
        self.assertNotIn("memory of their GPUs", log)

    def test_ranks_of_mpi_without_nccl(self):
        """Two GPUs and a CPU, stages: an edge between GPUs and one to the CPU, all by MPI."""
        log = self.check("--pp", "3", ranks=4, nccl=21300)
        self.assertIn("its version is 21300", log)
        self.assertIn("go through host memory", log)

    def test_nccl_ways(self):
        """What NCCL finds in its environment when it is first used; the user's choice wins."""
        os.environ["FAKE_NCCL_TELL"] = "1"
        try:
            log = self.check("--tp", "2")  # the fake library joins threads of one process only
            self.assertRegex(log, r'NCCL: ranks 1 2 on \S+: NCCL_SOCKET_IFNAME="=lo" because all ranks are on one host')
            self.assertEqual(set(re.findall("the fake NCCL connects by .*", log)), {"the fake NCCL connects by =lo"}, log)
            os.environ["NCCL_SOCKET_IFNAME"] = "eth7"
            log = self.check("--tp", "2")
            self.assertRegex(log, r'NCCL: ranks 1 2 on \S+: set by you: NCCL_SOCKET_IFNAME="eth7"')
            self.assertEqual(set(re.findall("the fake NCCL connects by .*", log)), {"the fake NCCL connects by eth7"}, log)
        finally:
            os.environ.pop("FAKE_NCCL_TELL")
            os.environ.pop("NCCL_SOCKET_IFNAME", None)

    def test_memory_that_others_take(self):
        """KV blocks are what memory holds after the load: fewer than planned, or a start that is refused."""
        total, kept, mib = 8 << 30, 256 << 20, 1 << 20
        flags = [*FLAGS, "--pp", "2"]
        flags[flags.index("--max_sequences") + 1] = "4096"
        with tempfile.TemporaryDirectory() as folder:
            profile = (harness.ROOT / "tests/data/topologies/four-gpus-profile.yaml").read_text()
            for number, bus in enumerate(re.findall(r'bus_id: ("[^"]+")', profile)):
                profile = profile.replace(bus, f'"0000:{number + 1:02x}:00.0"')
            (Path(folder) / "profile.yaml").write_text(profile)
            (Path(folder) / "libnvidia-ml.so.1").symlink_to(BUILD / "libfake_nvml.so")
            environment = {"TRIREME_FAKE_NVML_PROFILE": f"{folder}/profile.yaml",
                           "TRIREME_FAKE_NVML_FAULTS": "user:0:4711:3072,user:1:4711:3072"}

            def run(taken):
                environment["TRIREME_EMULATED_MEMORY_TAKEN"] = str(int(taken))
                with unittest.mock.patch.dict(os.environ, environment):
                    return self.run_program(BUILD / "trireme_emulated", *flags, ranks=3, nccl=21300,
                                            libraries=f"{LIBRARIES}:{folder}")

            # Not even its speed can be measured.
            end = run(total - 48 * mib)
            self.assertNotEqual(end.status, 0)
            self.assertRegex(end.log, r"cannot measure the GPU: [\d.]+ MiB of its 8\.0 GiB are free, needed are 72\.0 MiB")

            # The load just fits, the cache does not.
            end = run(total - 200 * mib)
            self.assertNotEqual(end.status, 0)
            self.assertRegex(end.log, r"cannot load: one sequence of 80 positions needs 5 KV blocks, there is room for 0: "
                                      r"rank [12] .*25\d\.\d MiB are kept.*others use that GPU: process 4711 \(3\.0 GiB\); "
                                      r"end what else runs there")
            used = 200 * mib - float(re.search(r"\) has ([\d.]+) MiB of its 8\.0 GiB free after the load", end.log).group(1)) * mib
            end = run(total - kept - used - 30 * mib)
            self.assertEqual(end.status, 0, end.log)
            found = re.search(r"replica 0 has (\d+) KV blocks in place of the planned (\d+) .*process 4711", end.log)
            self.assertIsNotNone(found, end.log)
            self.assertEqual(int(found.group(2)), 4096 * 5)
            self.assertTrue(100 < int(found.group(1)) < 4096 * 5, found.group(0))
            for line, alone in zip(end.out.splitlines(), self.base, strict=True):
                self.assertEqual(json.loads(line)["output_ids"][0], alone["output_ids"][0])
            end = run(0)
            self.assertEqual(end.status, 0, end.log)
            self.assertNotIn("in place of the planned", end.log)

    def test_integers_on_gpus_only(self):
        integers = ["--dtype", "int8", *FLAGS[2:]]
        end = self.run_program(BUILD / "trireme_emulated", *integers, "--tp", "2")
        self.assertEqual(end.status, 0, end.log)
        for line in end.out.splitlines():
            self.assertEqual(len(json.loads(line)["output_ids"]), 12)
        for binary, arguments in ((harness.BINARY, []), (BUILD / "trireme_emulated", ["--tp", "3"])):
            end = self.run_program(binary, *integers, *arguments)
            self.assertNotEqual(end.status, 0)
            self.assertIn("cannot use weights of int8: rank", end.log)
            self.assertIn("is a CPU, and only GPUs compute with them", end.log)


if __name__ == "__main__":
    unittest.main()

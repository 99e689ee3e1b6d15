# SPDX-License-Identifier: Apache-2.0
"""The program over two emulated GPUs (tests/support/cuda_emulation): the same tokens as on the CPU, whatever
ranks have one, and the way of tensors that the log tells."""
import json
import os
import tempfile
import unittest
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
    def run_program(cls, binary, *arguments, ranks=1, nccl=22809):
        """nccl: the version of the library that stands for NCCL's."""
        os.environ["LD_LIBRARY_PATH"] = str(LIBRARIES)
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

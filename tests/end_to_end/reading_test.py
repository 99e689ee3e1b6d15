# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint is read: each byte once per host, counted by the loader and by the kernel; progress to 100 %
and not before; --verify_checkpoint, which finds another byte in one host's copy."""
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import unittest
from pathlib import Path

import harness
from harness import BINARY, Job, Server

SIZE_MB = 96  # of the weights of the model that is read from the disk


def large_model(folder):
    """A llama of several layers whose weights are all alike: large enough to tell pages from accidents."""
    hidden, ffn, heads = 512, 2048, 8
    layers = SIZE_MB * (1 << 20) // 2 // (4 * hidden * hidden + 3 * hidden * ffn)
    source = Path(harness.tiny_model())
    config = json.loads((source / "config.json").read_text())
    vocab = config["vocab_size"]
    config.update(hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
                  num_key_value_heads=heads, head_dim=hidden // heads, torch_dtype="bfloat16")
    config.pop("dtype", None)
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors") and not path.name.startswith("ref."):
            shutil.copy(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = [vocab, hidden]
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part in "qkvo":
            shapes[f"{name}self_attn.{part}_proj.weight"] = [hidden, hidden]
        shapes[f"{name}mlp.gate_proj.weight"] = shapes[f"{name}mlp.up_proj.weight"] = [ffn, hidden]
        shapes[f"{name}mlp.down_proj.weight"] = [hidden, ffn]
        shapes[f"{name}input_layernorm.weight"] = shapes[f"{name}post_attention_layernorm.weight"] = [hidden]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    block = b"".join(struct.pack("<H", 0x3C00 + number % 256) for number in range(1 << 16))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = at
        while left:
            left -= file.write(block[:left])
        file.flush()
        os.fsync(file.fileno())
    return folder, at


def drop_from_cache(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def paged_in(pid):
    return int(re.search(r"read_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text())[1])


def counted(log):
    """What the loader counts on each host: {host: (ranks, factor of what is needed)}."""
    found = re.findall(r"host (\S+): (\d+) ranks? read .* of the checkpoint, ([\d.]+) x what is needed", log)
    return {host: (int(ranks), float(factor)) for host, ranks, factor in found}


class OncePerHost(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="trireme-reading-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        cls.model, cls.bytes = large_model(cls.folder / "large")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_bytes(self):
        weights = self.model / "model.safetensors"
        for name, ranks, options in (("tp2", 3, ["--tp", "2"]), ("dp2", 3, ["--dp", "2", "--tp", "1", "--pp", "1"]),
                                     ("tp2 pp2", 5, ["--tp", "2", "--pp", "2"])):
            with self.subTest(name):
                # The program and its libraries are in memory now; only the weights are not.
                drop_from_cache(weights)
                with Server(str(self.model), *options, "--context", "64", ranks=ranks) as server:
                    from_disk = sum(paged_in(pid) for pid in server.ranks().values())
                    counts = counted(server.log())
                    self.assertEqual(len(counts), 1, server.log())
                    (workers, factor), = counts.values()
                    self.assertEqual(workers, ranks - 1)
                    self.assertLessEqual(factor, 1.05)
                    self.assertGreaterEqual(factor, 1.0)
                    self.check_progress(server.log())
                    harness.print_bar(f"bytes that the ranks of a host read / need, {name}", factor, "<= 1.05",
                                      factor <= 1.05)
                    if from_disk == 0:
                        print("SKIPPED: this file system does not say what it reads from its device")
                        continue
                    paged = from_disk / self.bytes
                    harness.print_bar(f"bytes from the device / needed, {name}", round(paged, 3), "<= 1.05",
                                      paged <= 1.05, mib=self.bytes >> 20)
                    self.assertLessEqual(paged, 1.05)

    def check_progress(self, log):
        """100 % stands once, after every rank was ready."""
        lines = [line for line in log.splitlines() if "loading " in line and " % " in line]
        self.assertEqual(sum("loading 100 %" in line for line in lines), 1, log)
        self.assertTrue(lines[-1].startswith("loading 100 %"), log)
        end = log.index("loading 100 %")
        self.assertNotRegex(log[end:], r"rank \d+ ready")


class Verify(unittest.TestCase):
    """Two workers of a pipeline, each on a host of its own name, with a copy of the model of its own."""

    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("host names of their own need root")
        cls.folder = Path(tempfile.mkdtemp(prefix="trireme-verify-"))
        for host in "ab":
            shutil.copytree(harness.tiny_model(), cls.folder / host)
        cls.copy = cls.folder / "b/model.safetensors"
        cls.copy.chmod(0o644)
        cls.sound = cls.copy.read_bytes()

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def setUp(self):
        self.copy.write_bytes(self.sound)

    def on(self, host, *options):
        program = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host-{host}", BINARY]
        return [*program, "generate", "--model", str(self.folder / host), "--prompt_ids", "1,2,3", "--max_tokens", "8",
                "--pp", "2", "--ignore_eos", "--json", *options]

    def job(self, *options):
        """Rank 0 and 1 on host-a, rank 2 on host-b: the first layers and the last."""
        return Job([*harness.mpirun(2), *self.on("a", *options), ":", "-n", "1", *self.on("b", *options)])

    def tensors(self):
        (length,) = struct.unpack("<Q", self.sound[:8])
        header = json.loads(self.sound[8:8 + length])
        header.pop("__metadata__", None)
        return {name: (8 + length + tensor["data_offsets"][0], 8 + length + tensor["data_offsets"][1])
                for name, tensor in header.items()}

    def change(self, name):
        begin, end = self.tensors()[name]
        data = bytearray(self.sound)
        data[(begin + end) // 2 & ~1] ^= 1  # the low byte of a value: it stays finite
        self.copy.write_bytes(data)
        return [hashlib.sha256(bytes(part[begin:end])).hexdigest() for part in (self.sound, data)]

    def test_equal_copies(self):
        with self.job("--verify_checkpoint") as verified, self.job() as plain:
            self.assertEqual([verified.wait(60), plain.wait(60)], [0, 0], verified.log() + plain.log())
            ids = [json.loads(job.out().splitlines()[0])["output_ids"] for job in (verified, plain)]
            self.assertEqual(ids[0], ids[1])
            self.assertRegex(verified.log(), r"checkpoint verified: \d+ tensors, .*, sha256 [0-9a-f]{64}, "
                                             "the same on 2 hosts")
            self.assertIn("loading and verifying 100 %", verified.log())
            # Each host has read all of it, once.
            self.assertEqual(counted(verified.log()), {"host-a": (1, 1.0), "host-b": (1, 1.0)})
            self.assertNotIn("verified", plain.log())

    def test_another_byte(self):
        # The first layers are not host-b's to compute: that its copy of them differs would show at the next start.
        for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
            with self.subTest(name):
                digests = self.change(name)
                with self.job("--verify_checkpoint") as job:
                    self.assertEqual(job.wait(60), 2, job.log())
                    word = job.last_word()
                    for part in (f"tensor {name} of model.safetensors", "rank 1 on host-a", "rank 2 on host-b",
                                 *digests):
                        self.assertIn(part, word)
                    self.assertEqual(job.out(), "")
                with self.job() as job:  # it is not seen without the flag: a header and a size say nothing of it
                    self.assertEqual(job.wait(60), 0, job.log())


if __name__ == "__main__":
    harness.main(limit_s=150)

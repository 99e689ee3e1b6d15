# SPDX-License-Identifier: Apache-2.0
"""Fresh random blocks of every quantised type, dequantised by us and by the Python package gguf."""
import subprocess
import unittest
import warnings
from pathlib import Path

import harness

# After harness, which chooses the Python that has them.
try:
    import gguf
    import numpy as np
    from gguf.quants import dequantize
except ImportError as missing:
    harness.skip_script(f"{missing}; tests/python_environment installs it into .venv")

PROGRAM = Path(harness.BINARY).with_name("dequantise")
ROWS, COLS = 100, 1536
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "BF16",
         "F16")


def ours(name, blocks, begin, count):
    done = subprocess.run([PROGRAM, name, str(COLS), str(begin), str(count)], input=blocks.tobytes(),
                          stdout=subprocess.PIPE, timeout=60, check=True)
    return np.frombuffer(done.stdout, np.uint32).reshape(-1, count)


class Dequantise(unittest.TestCase):
    def test_bits_equal_the_reference(self):
        seed = np.random.SeedSequence().entropy
        rng = np.random.default_rng(seed)
        for name in TYPES:
            kind = gguf.GGMLQuantizationType[name]
            values, size = gguf.GGML_QUANT_SIZES[kind]
            # Any bytes: scales are infinite, NaN and subnormal too.
            blocks = rng.integers(0, 256, (ROWS, COLS // values * size), dtype=np.uint8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = dequantize(blocks, kind).astype(np.float32).reshape(ROWS, COLS)
            self.assertGreater(np.isfinite(want).sum(), want.size // 2)
            begin = int(rng.integers(1, COLS))
            count = int(rng.integers(1, COLS - begin + 1))
            for first, length in ((0, COLS), (begin, count)):
                with self.subTest(type=name, seed=seed, columns=(first, length)):
                    part = want[:, first : first + length]
                    got = ours(name, blocks, first, length)
                    # What a NaN carries depends on the processor.
                    both_nan = np.isnan(part) & np.isnan(got.view(np.float32))
                    equal = (got == np.ascontiguousarray(part).view(np.uint32)) | both_nan
                    self.assertTrue(equal.all(), np.argwhere(~equal)[:5].tolist())


if __name__ == "__main__":
    harness.main(limit_s=60)

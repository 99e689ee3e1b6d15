#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes helix-24.json and helix-42.json here from Helix's published files.

make_helix.py CLUSTERS TIMES: its cluster and solution files (*.ini), and its per-layer times of
LLaMA-2-70B (llama2_70b.TYPE.{prompt,decode}.csv: tokens or sequences, ms). Both are of
Thesys-lab/Helix-ASPLOS25@148b733, Apache-2.0.
"""
import configparser
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
CLUSTERS = {
    "helix-24": ("ablation_config_3cluster24.ini", "distributed_clusters_layout_llama70b_ilp_ilp_sol.ini"),
    "helix-42": ("high_heterogeneity_config_cluster42.ini", "high_heterogeneity_layout_llama70b_ilp_ilp_sol.ini"),
}
VRAM_GB = {"A100": 40, "V100": 16, "L4": 24, "L4x2": 48, "T4": 16, "T4x2": 32, "T4x4": 64}
UNITS = {"mbps": 1e6, "gbps": 1e9, "kbps": 1e3}  # of its own: bytes/s


def table(path):
    rows = [line.split(",") for line in path.read_text().split()]
    return [[int(x), float(y)] for x, y in rows if float(y) > 0]


def bandwidth(text):
    number, unit = text.split("*")
    return float(number) * UNITS[unit.strip()]


def main(clusters, times):
    for name, (config_file, solution_file) in CLUSTERS.items():
        config, solution = configparser.ConfigParser(), configparser.ConfigParser()
        config.read(clusters / config_file)
        solution.read(clusters / solution_file)
        count = int(config["NodeNames"]["total_compute_nodes"])
        offset = int(solution["Settings"]["offset"])
        nodes = []
        for i in range(count):
            layers = json.loads(solution["Solution"][f"compute_node_{i + offset}"])
            assert layers == list(range(layers[0], layers[-1] + 1))
            nodes.append({"type": config[f"ComputeNode-{i}"]["type"], "layers": [layers[0], layers[-1] + 1]})
        mb = [[0 if i == j else bandwidth(config[f"Link-{min(i, j)}-{max(i, j)}"]["bandwidth"]) / 1e6 for j in range(count)]
              for i in range(count)]
        types = {}
        for kind in sorted({node["type"] for node in nodes}):
            stem = times / f"llama2_70b.{kind.lower()}"
            types[kind] = {"vram_gb": VRAM_GB[kind], "prompt_ms": table(Path(f"{stem}.prompt.csv")),
                           "decode_ms": table(Path(f"{stem}.decode.csv"))}
        out = {"source": "Thesys-lab/Helix-ASPLOS25@148b733, Apache-2.0; by make_helix.py", "types": types,
               "nodes": nodes, "bandwidth_mb_s": mb}
        lines = [f' {json.dumps(key)}: {json.dumps(value)}' for key, value in out.items()]
        (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

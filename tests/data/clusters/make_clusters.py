#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the named clusters as topology files, and references.json with what a prototype of the cost model
found for them (research numbers of this project, not measurements). Run in this folder; no arguments."""
import json

# Latency and bus bandwidth of an all-reduce by TP degree: fitted to published NCCL measurements (see
# topology/devices.cc for the devices).
TABLES = {
    "nvl2": ("NVLink 2 cube mesh without switch", {2: (6e-6, 120e9), 4: (9e-6, 110e9), 8: (1.6e-5, 100e9)}),
    "nvpair": ("NVLink bridges in pairs, PCIe 4 beyond a pair", {2: (6e-6, 185e9), 4: (2.4e-5, 24e9), 8: (4e-5, 12e9)}),
    "nvs3": ("NVLink 3 through NVSwitch", {2: (5.3e-6, 161e9), 4: (6e-6, 182e9), 8: (7e-6, 190e9)}),
    "nvs4": ("NVLink 4 through NVSwitch", {2: (4.5e-6, 260e9), 4: (5e-6, 305e9), 8: (6e-6, 374e9)}),
    "nvs5": ("NVLink 5 through NVSwitch", {2: (5e-6, 475e9), 4: (5.5e-6, 555e9), 8: (8e-6, 585e9)}),
    "pcie3": ("PCIe 3", {2: (1.5e-5, 8e9), 4: (2e-5, 7e9), 8: (3e-5, 4e9)}),
    "pcie4": ("PCIe 4 without peer-to-peer switch", {2: (7e-6, 18.7e9), 4: (1.2e-5, 5.1e9), 8: (2.3e-5, 1.6e9)}),
    "pcie4sw": ("PCIe 4 under one switch", {2: (7e-6, 20e9), 4: (1.4e-5, 16e9), 8: (2.7e-5, 12e9)}),
}
CLASS = {"nvl2": "NVL", "nvs3": "NVL", "nvs4": "NVL", "nvs5": "NVL", "nvpair": "NVL", "pcie3": "PHB",
         "pcie4": "PHB", "pcie4sw": "PIX"}
MEMORY = {"A10": 24, "A100": 80, "A100-40": 40, "A40": 48, "GB200": 186, "H100": 80, "L4": 24, "L40S": 48,
          "R3090": 24, "R4090": 24, "T4": 16, "V100": 32, "CPU": 460}
# A CPU share that no row of the device table describes: all its constants.
CPU_SPEED = {"memory_bandwidth_bytes_per_s": 400e9, "flops_16bit_per_s": 30e12, "memory_efficiency": 0.7,
             "compute_efficiency": 0.5, "launch_s": 3e-5, "smoothing_exponent": 1.3, "decode_layer_s": 1e-5,
             "prefill_layer_s": 3e-5}

MIX = ("H100", 8, "nvs4"), ("A100", 8, "nvs3"), ("L40S", 8, "pcie4"), ("V100", 8, "nvl2"), ("H100", 7, "nvs4"), ("A10", 4, "pcie4")


def mix(*counts):
    return [(count, *island) for count, island in zip(counts, MIX)]


# name: islands as (count, device, devices of one, table), network (latency, bandwidth), prompt, output, TPOT limit in
# ms, and reference numbers: requests/s, bound, ms per token alone, best uniform, rule, accelerate sequential.
LLAMA, GLM = "llama3-70b", "chatglm3-6b"
CLUSTERS = {
    "01-two-dgx-h100-ndr": (LLAMA, [(2, "H100", 8, "nvs4")], (1.9e-5, 36e9), 1024, 256, 100,
                            (40.65949, 40.65949, 8.211934, 40.65949, 33.54171, 1.584243)),
    "02-4xa100-pcie-4xa10-25g": (LLAMA, [(1, "A100", 4, "pcie4sw"), (1, "A10", 4, "pcie4")], (4e-5, 2.6e9), 1024, 256,
                                 100, (1.973777, 1.973777, 24.07789, 1.630974, 1.440059, 0.169327)),
    "03-dgx1-v100-dgx-a100-40-100g": (LLAMA, [(1, "A100-40", 8, "nvs3"), (1, "V100", 8, "nvl2")], (2.9e-5, 7.8e9), 1024,
                                      256, 100, (8.393157, 8.393157, 15.94622, 8.022, 8.022, None)),
    "04-4-nodes-2x3090-10gbe": (LLAMA, [(4, "R3090", 2, "pcie4")], (6e-5, 1.1e9), 1024, 256, 200,
                                (0.818717, 0.818717, 96.50084, 0.818717, 0.818717, 0.01956016)),
    "05-hgx-h100-one-without-nvlink": (LLAMA, [(1, "H100", 7, "nvs4"), (1, "H100", 1, None)], (1e-5, 25e9), 1024, 256,
                                       100, (19.06938, 19.06938, 13.53223, 15.21806, 10.07704, 1.591638)),
    "06-nvl72-gb200": (LLAMA, [(1, "GB200", 72, "nvs5")], (8e-6, 280e9), 1024, 256, 50,
                       (397.8011, 397.8011, 5.612094, 396.1119, 279.2463, 3.470717)),
    "07-8xl40s-pcie": (LLAMA, [(1, "L40S", 8, "pcie4")], (8e-6, 10e9), 1024, 256, 150,
                       (1.754833, 1.754833, 32.90649, 1.754833, 0.2107277, None)),
    "08-4xa100-nvlink-pairs": (LLAMA, [(1, "A100", 4, "nvpair")], (8e-6, 10e9), 1024, 256, 100,
                               (2.709752, 2.709752, 25.59597, 2.709752, 1.657939, 0.169788)),
    "09-helix-24-10g": (LLAMA, [(4, "A100-40", 1, None), (8, "L4", 1, None), (12, "T4", 1, None)], (6e-5, 1.1e9), 763,
                        232, 1000, (3.010178, 3.010178, 135.652, 1.532447, 1.532447, 0.1444378)),
    "10-hexgen-a40-3090-t4": (LLAMA, [(1, "A40", 4, "pcie4sw"), (1, "R3090", 2, "pcie4"), (1, "T4", 2, "pcie4")],
                              (6e-5, 1.1e9), 1024, 256, 400,
                              (1.568554, 1.568554, 66.29233, 1.055293, 1.055293, 0.1055739)),
    "11-two-cpu-ranks-chatglm3": (GLM, [(2, "CPU", 1, None)], (4e-5, 2.6e9), 256, 128, 200,
                                  (5.494782, 5.494782, 44.0576, 5.494782, 5.494782, 2.747391)),
    "12-chatglm3-t4-3090-4090": (GLM, [(1, "T4", 2, "pcie3"), (1, "R3090", 1, None), (1, "R4090", 1, None)],
                                 (6e-5, 1.1e9), 1024, 256, 100,
                                 (11.7478, 11.7478, 14.61951, 11.06858, 1.789945, 1.390264)),
    "s1-mixed-71": (LLAMA, mix(2, 2, 2, 1, 1, 2), (2e-5, 20e9), 1024, 256, 100,
                    (74.63273, 116.1429, 8.211934, 64.64694, 48.65212, 0.3163772)),
    "s2-mixed-526": (LLAMA, mix(16, 16, 16, 8, 2, 16), (2e-5, 20e9), 1024, 256, 100,
                     (505.0466, 517.4712, 8.211934, 468.3944, 389.2169, 1.393497)),
    "s3-mixed-4208": (LLAMA, mix(128, 128, 128, 64, 16, 128), (2e-5, 20e9), 1024, 256, 100,
                      (4040.87, 4097.548, 8.211934, 3747.155, 3113.735, 1.393497)),
}
# In one chassis: islands of the same host.
ONE_HOST = {"05-hgx-h100-one-without-nvlink"}


def topology(name):
    _, islands, (latency, bandwidth), *_ = CLUSTERS[name]
    # The references count every hop as one over the network, inside an island too.
    hop = {"latency_s": latency, "bandwidth_bytes_per_s": bandwidth}
    ranks, groups, hosts = [], [], []
    for count, device, size, table in islands:
        for _ in range(count):
            host = "node0" if name in ONE_HOST else f"node{len(groups)}"
            if host not in hosts:
                hosts.append(host)
            members = []
            for _ in range(size):
                info = {"kind": "DEVICE_KIND_CPU" if device == "CPU" else "DEVICE_KIND_CUDA", "type": device,
                        "memory_bytes": str(MEMORY[device] * 10**9)}
                if device == "CPU":
                    info["speed"] = CPU_SPEED
                ranks.append({"rank": len(ranks) + 1, "host": host, "device": info})
                members.append(len(ranks))
            group = {"ranks": members, "link": {"link_class": "LINK_CLASS_" + CLASS.get(table, "SYS"), **hop}}
            if table:
                group["all_reduce_table"] = table
            groups.append(group)
    tables = [{"name": t, "link": TABLES[t][0],
               "rows": [{"tp": tp, "alpha_s": a, "bus_bytes_per_s": b} for tp, (a, b) in TABLES[t][1].items()]}
              for t in sorted({table for *_, table in islands if table})]
    return {"ranks": ranks, "islands": groups, "all_reduce_tables": tables,
            "nodes": [{"host": h, "between_islands": {"link_class": "LINK_CLASS_SYS", **hop}} for h in hosts],
            "network": [{"speed": {"link_class": "LINK_CLASS_NET", **hop}}]}


def lines(value, depth=0):
    """JSON with one line for each entry of a list of objects."""
    out = []
    for key, entries in value.items():
        body = ",\n".join("  " + json.dumps(entry, separators=(",", ":")) for entry in entries)
        out.append(f'"{key}": [\n{body}\n]')
    return "{" + ",\n".join(out) + "}\n"


references = []
for name, (model, islands, network, prompt, output, limit, numbers) in CLUSTERS.items():
    with open(name + ".json", "w") as file:
        file.write(lines(topology(name)))
    keys = "requests_per_s", "bound", "ms_per_token", "best_uniform", "rule", "accelerate"
    references.append({"name": name, "model": model, "prompt": prompt, "output": output, "tpot_limit_ms": limit,
                       **{key: number or 0 for key, number in zip(keys, numbers)}})
with open("references.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(entry) for entry in references) + "\n]\n")

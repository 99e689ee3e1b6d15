#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs fuzz targets (preset fuzz) for a bounded time in bounded memory: fuzz.py [TARGET…] [--seconds 60] [--seeds].

Prints a line for each target: seconds asked for, seconds of processor time had, runs, runs a second, edges of the
code that were reached, inputs in the corpus, findings. What a target finds lies in build-fuzz/findings/TARGET; once it is mended, the (minimised) input
belongs into tests/fuzz/regressions/TARGET, where an ordinary test replays it.
"""
import argparse
import base64
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build-fuzz"
DATA = ROOT / "tests/data"
CUT = b"\n----\n"
SKIP_STATUS = 77
RSS_LIMIT_MB = 2048
INPUT_TIMEOUT_S = 60  # wall time, under the sanitizers and beside other work; templates have four million steps


def read(*parts):
    return DATA.joinpath(*parts).read_bytes()


# ---- seeds: the small files of tests/data, and messages in protobuf's text format ----

def text_messages(message_type, proto, *texts):
    """Messages in binary, written down in protobuf's text format."""
    found = []
    for text in texts:
        command = ["protoc", f"-I{ROOT}/proto", f"--encode={message_type}", proto]
        found.append(subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout)
    return found


def small_safetensors(name):
    """The header's first tensors with their bytes: a file that mutations reach the end of."""
    data = read(name, "model.safetensors")
    length, = struct.unpack("<Q", data[:8])
    header = {key: value for key, value in list(json.loads(data[8:8 + length]).items())[:4] if key != "__metadata__"}
    body = b""
    for tensor in header.values():
        begin, end = tensor["data_offsets"]
        tensor["data_offsets"] = [len(body), len(body) + end - begin]
        body += data[8 + length + begin:8 + length + end]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def small_tokenizer(name):
    """The bytes, the special tokens and a few merges."""
    tokenizer = json.loads(read(name, "tokenizer.json"))
    merges = tokenizer["model"]["merges"][:8]
    texts = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in merges}
    added = {token["content"] for token in tokenizer["added_tokens"]}
    vocab = [text for text in tokenizer["model"]["vocab"] if len(text) == 1 or text in texts or text in added]
    tokenizer["model"].update(merges=merges, vocab={text: index for index, text in enumerate(vocab)})
    for index, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = tokenizer["model"]["vocab"].get(token["content"], len(vocab) + index)
    return CUT.join([json.dumps(tokenizer, ensure_ascii=False).encode(), read(name, "tokenizer_config.json"),
                     "a text, 123 <|user|> 你好\r\n".encode()])


def small_gguf():
    """A head, a key of each type, and one tensor of each kind that fits into few bytes."""
    def text(value):
        return struct.pack("<Q", len(value)) + value

    values = {0: b"\1", 1: b"\1", 2: b"\1\0", 3: b"\1\0", 4: b"\1\0\0\0", 5: b"\1\0\0\0", 6: b"\0\0\x80\x3f", 7: b"\1",
              8: text(b"llama"), 9: struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b"), 10: bytes(8), 11: bytes(8), 12: bytes(8)}
    head = b"".join(text(b"k%d" % kind) + struct.pack("<I", kind) + value for kind, value in values.items())
    head += text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    sizes = {0: 4 * 32, 1: 2 * 32, 2: 18, 3: 20, 8: 34, 30: 2 * 32}
    directory, offset = b"", 0
    for kind, size in sizes.items():
        directory += text(b"t%d" % kind) + struct.pack("<IQIQ", 1, 32, kind, offset)
        offset += (size + 31) // 32 * 32
    file = b"GGUF" + struct.pack("<IQQ", 3, len(sizes), len(values) + 1) + head + directory
    return file + bytes(-len(file) % 32) + bytes(range(256)) * (offset // 256 + 1)


def sentencepiece_seeds():
    model = read("tiny-chatglm3", "tokenizer.model")
    return [model, model[:4000]]


GENERATE = ('text: "Hello" max_tokens: 5 sampling { temperature: 0.5 top_p: 0.9 top_k: 4 seed: 1 } stop: "x"',
            'token_ids { ids: 1 ids: 500 } logprobs: 3 stop_token_ids: 7 ignore_eos: true request_id: "a"',
            'text: "a" metadata { key: "k" value: "v" } n: 1 sampling { min_p: 0.1 repetition_penalty: 1.1 '
            'frequency_penalty: 0.5 presence_penalty: 0.5 logit_bias { key: 3 value: 1 } } min_tokens: 2')
CHAT = ('messages { role: "system" content: "Be brief." } messages { role: "user" content: "<|user|> hi <|im_end|>" }',
        'messages { role: "user" content: "2+2?" } messages { role: "assistant" content: "4" } '
        'messages { role: "user" content: "<|eot_id|>" } max_tokens: 3',
        'messages { role: "user" content: "a" } messages { role: "assistant" content: "b" tool_calls { name: "f" '
        'arguments_json: "{\\"x\\": [1]}" id: "abcDEF123" } } messages { role: "tool" content: "7" tool_call_id: "abcDEF123" } '
        'tools_json: "[{\\"name\\": \\"f\\", \\"description\\": \\"<|user|>\\"}]"',
        'messages { role: "user" content: "a" } messages { role: "assistant" content: "```python\\ntool_call(x=1)\\n```" name: "f" } '
        'messages { role: "observation" content: "7" name: "f" }')
FORMATS = 48  # more than there are: tests/fuzz/served.h
BATCH = ('id: 1 chunks { sequence: 1 position: 3 token_ids: 10 token_ids: 11 block_table: 7 block_table: 2 sample: true '
         'draw { temperature: 1 top_p: 0.9 top_k: 5 seed: 3 logprobs: 2 repetition_penalty: 1.1 presence_penalty: 0.1 '
         'num_prompt: 2 bias_ids: 3 biases: 0.5 banned_ids: 4 } } chunks { token_ids: 20 block_table: 5 }',)
MODEL = ('family: "llama" num_layers: 2 hidden_size: 32 num_heads: 4 num_kv_heads: 2 head_dim: 8 ffn_size: 64 '
         'vocab_size: 100 context_length: 64 norm_eps: 1e-5 rope { pairing: ROPE_PAIRING_HALF rotary_dim: 8 base: 10000 }')
PLACEMENT = ('replicas { stages { layers { end: 2 } has_embedding: true has_head: true shards { rank: 1 heads { end: 4 } '
             'kv_heads { end: 2 } ffn { end: 64 } vocab { end: 100 } } } } dtype: "bf16" block_size: 16 num_blocks: 8 '
             'max_sequences: 2 max_batch_tokens: 16 context: 64')
ASSIGN = (f'model {{ {MODEL} }} placement {{ {PLACEMENT} }} logical_vocab_size: 99 threads: 1 isa: "auto" node_ranks: 1 verify_checkpoint: true',)


def kept_seeds(target):
    """Those in tests/fuzz/seeds, which the ordinary test runs too."""
    return [path.read_bytes() for path in sorted((ROOT / "tests/fuzz/seeds" / target).iterdir())]


def device_maps():
    full = {"replicas": [{"stages": [
        {"layers": {"begin": 0, "end": 2}, "has_embedding": True, "shards": [{"rank": 1, "tp_rank": 0}]},
        {"layers": {"begin": 2, "end": 3}, "has_head": True, "shards": [{"rank": 2}, {"rank": 3, "tp_rank": 1}]}]}],
        "dtype": "bf16", "block_size": 16, "num_blocks": 64, "max_sequences": 4, "max_batch_tokens": 64, "context": 512,
        "spare_ranks": [4]}
    layers = {f"transformer.encoder.layers.{i}": i // 2 for i in range(3)}
    rest = {"transformer.embedding": 0, "transformer.rotary_pos_emb": 0, "transformer.encoder.final_layernorm": 1,
            "transformer.output_layer": 1}
    names = {"": "cpu", "transformer.encoder": "node:1", "transformer.output_layer": "cuda:1"}
    split = {**layers, **rest, "transformer.encoder.layers.1.mlp": 1}
    return [json.dumps(one).encode() for one in (full, {**layers, **rest}, names, split)]


def framed(*messages):
    return b"\7" + b"".join(struct.pack(">I", len(message)) + message for message in messages)


def control_frames():
    to_worker = text_messages("trireme.ToWorker", "micro_batch.proto", f"micro_batch {{ {BATCH[0]} }}", "shutdown {}",
                              f"assign {{ {ASSIGN[0]} }}", 'abandon { reason: "lost" }',
                              'links { peers { rank: 2 tag: 7 host: "h" addresses: "10.0.0.1" } timeout_ms: 9 control_port: 4711 }',
                              "links { step: STEP_MEASURE budget_ms: 5 timeout_ms: 9 }")
    from_worker = text_messages(
        "trireme.FromWorker", "micro_batch.proto",
        'hello { info { rank: 1 host: "h" pid: 3 } facts { must_agree { field: "build" value: "b" } '
        'may_differ { field: "--model" value: "m" } } addresses: "10.0.0.1" }',
        "result { id: 1 tokens { sequence: 1 token: 2 logprobs { id: 2 logprob: -1 } } }", 
        "heartbeat { micro_batch: 1 current: 2 operation: OPERATION_ALL_REDUCE layer: 3 waiting_for: 2 operation_us: 5 }",
        'failed { code: 3 message: "m" waiting_for: 2 }', "ready { weight_bytes: 1 node_bytes: 2 }",
        "progress { bytes_done: 1 bytes_total: 2 phase: LOAD_PHASE_ALLOCATING }",
        'digests { digests { tensor: "t" file: "f" sha256: "00" bytes: 1 } }')
    too_long = struct.pack(">I", 1 << 31)
    return [framed(*to_worker), framed(*from_worker), framed(*from_worker)[:-1],  # cut
            framed(*from_worker) + too_long + framed(*from_worker)[1:],
            framed(*from_worker, *from_worker)]  # sent again


def seeds_of(target):
    families = ("tiny-chatglm3", "tiny-glm", "tiny-llama3", "tiny-qwen2")
    if target == "safetensors":
        return [small_safetensors(name) for name in families]
    if target == "shard_index":
        index = {"metadata": {"total_size": 10}, "weight_map": {"x": "a", "y": "a", "z": "b"}}
        return [json.dumps(index).encode(), read("tiny-chatglm3-fp16-sharded", "model.safetensors.index.json")]
    if target == "gguf":
        return [small_gguf(), *(read("gguf", name) for name in ("tiny-llama3.gguf", "tiny-qwen2.gguf"))]
    if target == "config":
        return [read(path.parent.name, "config.json") + CUT + b'{"eos_token_id": [1, 2]}'
                for path in sorted(DATA.glob("tiny-*/config.json"))]
    if target == "device_map":
        return device_maps()
    if target == "tokenizer_json":
        return [small_tokenizer(path.parent.name) for path in sorted(DATA.glob("tiny-*/tokenizer.json"))]
    if target == "sentencepiece":
        return sentencepiece_seeds()
    if target == "sentencepiece_folder":
        config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True}, "300": {"content": "<new>", "special": False}}}
        return [json.dumps(config).encode() + CUT + model for model in sentencepiece_seeds()]
    if target == "tiktoken":
        lines = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
        config = {"tokenizer_class": "ChatGLM4Tokenizer",
                  "added_tokens_decoder": {"258": {"content": "<|user|>", "special": True}}}
        return [json.dumps(config).encode() + CUT + lines + b"dGg= 256\nIHRo 257\n"]
    if target == "vocab_merges":
        tokenizer = json.loads(small_tokenizer("tiny-qwen2").split(CUT)[0])["model"]
        merges = "#version: 0.2\n" + "".join(
            (merge if isinstance(merge, str) else " ".join(merge)) + "\n" for merge in tokenizer["merges"])
        return [CUT.join([b'{"tokenizer_class": "Qwen2Tokenizer"}',
                          json.dumps(tokenizer["vocab"], ensure_ascii=False).encode(), merges.encode()])]
    if target == "regex":
        patterns = (r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", r"\p{N}{1,3}", r"(?i:'s|'t)|(?<=a)b*?(?>c)",
                    r"(a+)+$", r"a*a*[bc]")
        return [pattern.encode() + CUT + "Hello 123, aaaaaaaaab 你好\r\n  it's".encode() for pattern in patterns]
    if target == "generate_request":
        return text_messages("trireme.v1.GenerateRequest", "inference.proto", *GENERATE)
    if target == "chat_request":
        return [bytes([format]) + message for format in range(FORMATS)
                for message in text_messages("trireme.v1.ChatRequest", "inference.proto", *CHAT)]
    if target == "chat_template":
        conversation = {"messages": [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": " x "}],
                        "tools": [{"name": "f", "parameters": {"a": [1, 2.5, None, True]}}],
                        "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
        templates = [json.loads(path.read_bytes()).get("chat_template") or ""
                     for path in sorted(DATA.glob("tiny-*/tokenizer_config.json"))]
        templates += ["{% for m in messages if m.role != 'x' %}{{ loop.index0 ~ m['content'] | trim | upper }}{% endfor %}",
                      "{% set n = namespace(a=[1, 2][::-1]) %}{% macro f(x, y=2) %}{{ x ** y // 3 % 5 }}{% endmacro %}{{ f(-3) }}",
                      "{{ tools | tojson(indent=2) }}{{ 'a,b'.split(',') | join('-') if tools is defined else raise_exception('x') }}"]
        return [template.encode() + CUT + json.dumps(conversation).encode() for template in templates if template]
    if target == "tools_json":
        return [json.dumps([{"type": "function", "function": {"name": "f", "description": "d", "parameters": {
                    "type": "object", "properties": {"x": {"type": "number"}}}}}, {"name": "g"}]).encode(),
                b"```python\ntool_call(a=1, b='x', c=[1.5, None, True], d={'k': -2})\n```",
                b'{"name": "f", "arguments": {"x": 1e5, "y": "\\u00e9"}}']
    if target == "answer":
        answers = (b'text <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call> more', b'{"name": "f", "parameters": {}}',
                   b"f\n{\"x\": 1}\1g\n{}", "你好 <tool_c".encode(), b"\n a\1f\n```python\ntool_call(x='1', y=[2])\n```\4",
                   b'\2{"name": "f", "parameters": {"x": 1}}\5', b'a\3[{"name": "f", "arguments": {}, "id": "abcDEF123"}]')
        return [bytes([format]) + answer for format in range(FORMATS) for answer in answers]
    if target == "control_frames":
        return control_frames()
    if target == "control_address":
        return [b"trireme-control-1\n4711\n" + b"0f" * 32 + b"\n10.0.0.1\nfe80::1\n"]
    if target == "micro_batch":
        return text_messages("trireme.MicroBatch", "micro_batch.proto", *BATCH)
    if target == "assign":
        return text_messages("trireme.Assign", "micro_batch.proto", *ASSIGN)
    if target == "nccl_xml":
        return [read("topologies", "hgx-4gpu-one-lost.xml"), *kept_seeds(target)]
    if target == "hwloc_xml":
        return [read("topologies", "two-sockets-hwloc.xml")]
    if target == "machine_text":
        return [*(read("topologies", name) for name in ("two-leaves-ibnetdiscover.txt", "two-domains-topograph.yaml",
                                                        "four-gpus-profile.yaml")), *kept_seeds(target)]
    if target == "topology_json":
        return [*(read("clusters", name) for name in ("05-hgx-h100-one-without-nvlink.json",
                                                      "11-two-cpu-ranks-chatglm3.json")), *kept_seeds(target)]
    return []


# The largest input of a target, in bytes; messages and patterns are small.
MAX_BYTES = {"sentencepiece": 1 << 16, "gguf": 1 << 17, "safetensors": 1 << 16, "tokenizer_json": 1 << 15}


def run(target, seconds, folder):
    corpus, findings = BUILD / "corpus" / target, BUILD / "findings" / target
    corpus.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(findings, ignore_errors=True)
    findings.mkdir(parents=True)
    seeds = Path(folder) / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    seeds.mkdir()
    for number, seed in enumerate(seeds_of(target)):
        (seeds / str(number)).write_bytes(seed)
    kept = ROOT / "tests/fuzz/regressions" / target
    command = [BUILD / "fuzz", f"--target={target}", f"-max_total_time={seconds}", f"-timeout={INPUT_TIMEOUT_S}",
               f"-rss_limit_mb={RSS_LIMIT_MB}", f"-max_len={MAX_BYTES.get(target, 1 << 13)}", "-print_final_stats=1", "-keep_seed=1",
               f"-artifact_prefix={findings}/", corpus, seeds, *([kept] if kept.exists() else [])]
    environment = {**os.environ, "TMPDIR": str(folder), "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=0",
                   "UBSAN_OPTIONS": "print_stacktrace=1"}
    log = findings.parent / f"{target}.log"
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "wb") as out:
        end = subprocess.run([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, env=environment,
                             timeout=seconds + 300, check=False)
    text = log.read_text(errors="replace")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = round(usage.ru_utime + usage.ru_stime - begin.ru_utime - begin.ru_stime)
    number = lambda pattern: int((re.findall(pattern, text) or ["0"])[-1])  # noqa: E731
    row = {"target": target, "seconds": seconds, "cpu_s": cpu_s, "runs": number(r"stat::number_of_executed_units:\s*(\d+)"),
           "runs_per_s": number(r"stat::average_exec_per_sec:\s*(\d+)"), "edges": number(r"cov: (\d+)"),
           "corpus": sum(1 for _ in corpus.iterdir()), "peak_mb": number(r"stat::peak_rss_mb:\s*(\d+)"),
           "findings": len(list(findings.iterdir())), "ok": end.returncode == 0}
    print(json.dumps(row), flush=True)
    if not row["ok"]:
        print("\n".join(text.splitlines()[-60:]), file=sys.stderr)
    return row["ok"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seeds", action="store_true", help="make the targets' seeds only: an ordinary test")
    options = parser.parse_args()
    if options.seeds:
        counts = {target: len(seeds_of(target)) for target in options.targets}
        print(json.dumps(counts))
        return 0 if counts and all(counts.values()) else 1
    if not (BUILD / "fuzz").exists():
        print("SKIPPED: build-fuzz/fuzz is absent; tests/run --long builds it (preset fuzz)")
        return SKIP_STATUS
    listing = subprocess.run([BUILD / "fuzz"], stderr=subprocess.PIPE, text=True, check=False).stderr
    targets = options.targets or listing.split(":", 1)[1].split()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        results = [run(target, options.seconds, folder) for target in targets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

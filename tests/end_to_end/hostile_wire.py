# SPDX-License-Identifier: Apache-2.0
"""What a hostile client sends. A case takes the server and returns (code, message), as its client saw them."""
import contextlib
import math
import os
import resource
import socket
import struct
import time

import harness
from harness import Stream, api, grpc, ids_request, sampling

MILLION = 1_000_000


# ---- messages ----

def generate(**fields):
    return lambda server: harness.refusal(server.inference.Generate, ids_request([1, 2, 3], **fields))


def drawn(**fields):
    return generate(sampling=fields)


def ids(*values):
    return lambda server: harness.refusal(server.inference.Generate, ids_request(values))


def text(value):
    return lambda server: harness.refusal(server.inference.Generate, api().pb.GenerateRequest(text=value))


def chat(*messages, **fields):
    def case(server):
        return harness.refusal(server.inference.Chat, api().pb.ChatRequest(messages=messages, **fields))
    return case


def raw(make_bytes, method="Generate", **options):
    """Bytes in place of a message."""
    def once(server):
        with grpc.insecure_channel(server.address, options=[
                ("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 64 << 20)]) as channel:
            call = channel.unary_stream(f"/trireme.v1.Inference/{method}", request_serializer=bytes,
                                        response_deserializer=bytes)
            try:
                for _ in call(make_bytes(), timeout=60, **options):
                    pass
            except grpc.RpcError as error:
                return error.code().name, error.details()
        raise AssertionError("the call succeeded")

    def case(server):
        # A server that closes before it has read all may be heard by its broken pipe alone.
        for _ in range(5):
            found = once(server)
            if found[0] != "UNAVAILABLE":
                break
        return found
    return case


def sound():
    return ids_request([1, 2, 3], max_tokens=1).SerializeToString()


def same_id_twice(server):
    """The first may have ended before the second comes, so that it takes some tries."""
    for number in range(20):
        name = f"twice-{number}"
        first = Stream(server.inference.Generate(
            ids_request([1, 2, 3], max_tokens=2000, ignore_eos=True, request_id=name))).wait_begun()
        try:
            harness.read(server.inference.Generate(ids_request([1], max_tokens=1, request_id=name)))
        except grpc.RpcError as error:
            assert len(first.result().ids) == 2000
            return error.code().name, error.details()
        first.result()
    raise AssertionError("two requests of one id ran at once, or none of 20 was still running")


def too_late(server):
    stream = Stream(server.inference.Generate(ids_request([1], max_tokens=2000, ignore_eos=True), timeout=0.05))
    error = stream.wait_end().error
    return error.code().name, error.details()


def never_reads(server):
    """Asks for answers whose reader sleeps, and goes."""
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = api().rpc.InferenceStub(channel)
        calls = [stub.Generate(ids_request([1, 2, 3], max_tokens=2000, ignore_eos=True, logprobs=20)) for _ in range(8)]
        time.sleep(1)
        check_serves(server)
        for call in calls:
            call.cancel()
    return "OK", "others are served meanwhile"


def begins_and_goes(server):
    """Thousands of calls, each cancelled as soon as it is made."""
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = api().rpc.InferenceStub(channel)
        for _ in range(3000):
            stub.Generate(ids_request([1, 2, 3], max_tokens=2000, ignore_eos=True)).cancel()
    server.wait_free(30)
    return "OK", "3000 calls were cancelled"


USER = {"role": "user", "content": "x"}
MESSAGES = [
    ("max_tokens 0", generate(max_tokens=0), "INVALID_ARGUMENT", "max_tokens: found 0, allowed: 1 to 2045"),
    ("max_tokens 2^31 - 1", generate(max_tokens=(1 << 31) - 1), "INVALID_ARGUMENT", "max_tokens: found 2147483647"),
    ("n negative", generate(n=-1), "INVALID_ARGUMENT", "n: found -1"),
    ("logprobs 21", generate(logprobs=21), "INVALID_ARGUMENT", "logprobs: found 21, allowed: 0 to 20"),
    ("temperature NaN", drawn(temperature=math.nan), "INVALID_ARGUMENT", "sampling.temperature: found nan"),
    ("temperature infinite", drawn(temperature=math.inf), "INVALID_ARGUMENT", "sampling.temperature: found inf"),
    ("temperature negative", drawn(temperature=-1), "INVALID_ARGUMENT", "sampling.temperature: found -1"),
    ("top_p NaN", drawn(top_p=math.nan), "INVALID_ARGUMENT", "sampling.top_p: found nan"),
    ("top_k negative", drawn(top_k=-1), "INVALID_ARGUMENT", "sampling.top_k: found -1"),
    ("min_p NaN", drawn(min_p=math.nan), "INVALID_ARGUMENT", "sampling.min_p: found nan"),
    ("repetition_penalty NaN", drawn(repetition_penalty=math.nan), "INVALID_ARGUMENT", "sampling.repetition_penalty: found nan"),
    ("frequency_penalty infinite", drawn(frequency_penalty=math.inf), "INVALID_ARGUMENT", "sampling.frequency_penalty: found inf"),
    ("bias NaN", drawn(logit_bias={3: math.nan}), "INVALID_ARGUMENT", "sampling.logit_bias"),
    ("bias of an id behind the vocabulary", drawn(logit_bias={1 << 30: 1}), "INVALID_ARGUMENT", "sampling.logit_bias"),
    ("10^5 biases", drawn(logit_bias=dict.fromkeys(range(100_000), 1)), "INVALID_ARGUMENT", "sampling.logit_bias"),
    ("2^31 - 1 answers", generate(n=(1 << 31) - 1), "INVALID_ARGUMENT", "n: found 2147483647"),
    ("10^6 stop strings", generate(stop=["x"] * MILLION), "INVALID_ARGUMENT", "stop: found 1000000 strings, allowed: at most 16"),
    ("10^6 stop ids", generate(stop_token_ids=[1] * MILLION), "INVALID_ARGUMENT", "stop_token_ids: found 1000000 ids"),
    ("stop string of 1 MB", generate(stop=["x" * MILLION]), "INVALID_ARGUMENT", "stop[0]: found 1000000 bytes"),
    ("stop id behind the vocabulary", generate(stop_token_ids=[512]), "INVALID_ARGUMENT", "stop_token_ids[0]: found 512"),
    ("10^5 entries of metadata", generate(metadata={str(key): "" for key in range(100_000)}), "INVALID_ARGUMENT", "metadata: found 100000"),
    ("request id of 129 letters", generate(request_id="x" * 129), "INVALID_ARGUMENT", "request_id: found 129 bytes"),
    ("request id with a line break", generate(request_id="a\nb"), "INVALID_ARGUMENT", "request_id: found a character"),
    ("request id that is running", same_id_twice, "ALREADY_EXISTS", " is running already; ids must differ"),
    ("no prompt", lambda server: harness.refusal(server.inference.Generate, api().pb.GenerateRequest()), "INVALID_ARGUMENT",
     "prompt: found neither text nor token_ids"),
    ("no token", ids(), "INVALID_ARGUMENT", "token_ids: found no token"),
    ("id negative", ids(-1), "INVALID_ARGUMENT", "token_ids.ids[0]: found -1, allowed: 0 to 511"),
    ("id behind the vocabulary", ids(1, 512), "INVALID_ARGUMENT", "token_ids.ids[1]: found 512"),
    ("10^6 ids", ids(*[1] * MILLION), "INVALID_ARGUMENT", "token_ids: found 1000000 tokens, allowed: at most 2047"),
    ("text over 1 MiB", text("x" * ((1 << 20) + 1)), "INVALID_ARGUMENT", "text: found 1048577 bytes"),
    ("text of 1 MiB, one word", text("x" * (1 << 20)), "INVALID_ARGUMENT", "the context served is 2048"),
    ("10^6 messages", chat(*[{}] * MILLION), "INVALID_ARGUMENT", "messages: found 1000000 messages, allowed: at most 1024"),
    ("role unknown", chat({"role": "robot", "content": "x"}), "INVALID_ARGUMENT", 'messages[0].role: found "robot"'),
    ("role of 1 MB", chat({"role": "x" * MILLION}), "INVALID_ARGUMENT", "messages[0].role: found an unknown role"),
    ("tools that are no JSON", chat(USER, tools_json="[{"), "INVALID_ARGUMENT", "tools_json: "),
    ("tools nested 10^5 deep", chat(USER, tools_json="[" * 100_000), "INVALID_ARGUMENT", "tools_json: "),
    ("10^5 tools", chat(USER, tools_json="[%s]" % ",".join('{"name": "f%d"}' % number for number in range(100_000))),
     "INVALID_ARGUMENT", "tools_json: "),
    ("tools for a model without", chat(USER, tools_json='[{"name": "f"}]'), "UNIMPLEMENTED", "tools_json: is set"),
    ("call of a user", chat({**USER, "tool_calls": [{"name": "f", "arguments_json": "{}"}]}), "INVALID_ARGUMENT",
     "messages[0].tool_calls: "),
    ("arguments that are a list", chat(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments_json": "[1]"}]}),
     "INVALID_ARGUMENT", "messages[1].tool_calls[0].arguments_json: "),
    ("10^6 ids to read back", lambda server: harness.refusal(
        server.inference.Detokenize, api().pb.DetokenizeRequest(token_ids=[1] * MILLION)), "INVALID_ARGUMENT", "token_ids: found 1000000"),
    ("abort of what does not run", lambda server: harness.refusal(
        server.inference.Abort, api().pb.AbortRequest(request_id="nobody")), "NOT_FOUND", "cannot abort nobody"),
    ("drain without a token", lambda server: harness.refusal(
        server.cluster.Drain, api().pb.DrainRequest()), "PERMISSION_DENIED", "cannot drain"),
    ("a field of a later version", raw(lambda: sound() + b"\xb8\x3e\x01"), "UNIMPLEMENTED", "field number 999"),
    # gRPC's own words for what does not parse.
    ("text that is no UTF-8", raw(lambda: b"\x12\x01\xff"), "UNIMPLEMENTED", ""),
    ("no protobuf", raw(lambda: b"\xff" * 100), "UNIMPLEMENTED", ""),
    ("a method that is none", raw(lambda: b"", "Nothing"), "UNIMPLEMENTED", ""),
    ("100 MB", raw(lambda: bytes(100 << 20)), "RESOURCE_EXHAUSTED", "larger than max"),
    ("100 MB that travel as 100 KB", raw(lambda: bytes(100 << 20), compression=grpc.Compression.Gzip), "RESOURCE_EXHAUSTED", ""),
    ("1 MB of metadata", raw(sound, metadata=[("x-%d" % number, "v" * 8000) for number in range(128)]), "RESOURCE_EXHAUSTED", ""),
    ("a deadline that passes", too_late, "DEADLINE_EXCEEDED", ""),
    ("clients that never read", never_reads, "OK", ""),
    ("calls that begin and go", begins_and_goes, "OK", ""),
]


# ---- bytes on the port ----

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


SETTINGS = frame(4, 0, 0, b"")


def dial(server):
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def sent(payload):
    """Sends it all, and waits until the server has closed."""
    def case(server):
        with dial(server) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(payload())
            return closed(connection)
    return case


def closed(connection):
    """Reads what the server still says."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            said += part
            if len(said) > 64 << 20:
                raise AssertionError("the server talks without end")
    return "CLOSED", f"after {len(said)} bytes"


def silent(first):
    """200 connections that say nothing further, for longer than the server waits."""
    def case(server):
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(dial(server)) for _ in range(200)]
            for connection in connections:
                connection.sendall(first)
            check_serves(server)
            for connection in connections:
                closed(connection)
        return "CLOSED", "200 of them, within 20 s; others are served meanwhile"
    return case


def one_byte_a_second(server):
    with dial(server) as connection:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in PREFACE:
                connection.sendall(bytes([byte]))
                time.sleep(0.6)
        closed(connection)
        if time.monotonic() - began > 20:
            raise AssertionError("the server waits for ever")
    return "CLOSED", "within 20 s"


def resets(server):
    for _ in range(2000):
        with dial(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "OK", "2000 connections were reset"


def many_connections(server):
    """More than processes may have open by default: gRPC's listener must not meet that limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(3000, limits[1] // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(dial(server))
        check_serves(server)
    check_serves(server)
    return "OK", f"{count} at once; others are served meanwhile"


def headers_without_end(server):
    """A block of headers that goes on for 64 MB."""
    with dial(server) as connection:
        connection.sendall(PREFACE + SETTINGS + frame(1, 0, 1, b"\x82"))
        part = frame(9, 0, 1, b"\x00\x01a\x7f\xb1\x7c" + b"v" * 16000)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(4000):
                connection.sendall(part)
    return "OK", "64 MB of headers"


CONNECTIONS = [
    ("1 MiB of garbage", sent(lambda: os.urandom(1 << 20)), "CLOSED", ""),
    ("1 MiB of zeros", sent(lambda: bytes(1 << 20)), "CLOSED", ""),
    ("HTTP/1.1", sent(lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 1000), "CLOSED", ""),
    ("TLS", sent(lambda: bytes.fromhex("1603010200010001fc0303") + bytes(600)), "CLOSED", ""),
    ("a frame of 16 MiB", sent(lambda: PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1 << 20)), "CLOSED", ""),
    ("100000 pings", sent(lambda: PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 100_000), "CLOSED", ""),
    ("headers without end", headers_without_end, "OK", ""),
    ("200 that say nothing", silent(b""), "CLOSED", ""),
    ("200 that stop in the preface", silent(PREFACE[:10]), "CLOSED", ""),
    ("one byte at a time", one_byte_a_second, "CLOSED", ""),
    ("2000 that are reset", resets, "OK", ""),
    ("3000 at once", many_connections, "OK", ""),
]


def check_serves(server):
    """The server still answers, and as before."""
    answer = harness.read(server.connect()[0].Generate(ids_request([5, 6, 7, 8], max_tokens=20, ignore_eos=True), timeout=30))
    expected = getattr(server, "expected", answer.ids)
    server.expected = expected
    assert answer.ids == expected, f"another answer than before: {answer.ids}"


WIRE = [("request", *case) for case in MESSAGES] + [("connection", *case) for case in CONNECTIONS]

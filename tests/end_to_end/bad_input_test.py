# SPDX-License-Identifier: Apache-2.0
"""What is wrong is refused with words that help, and harms nobody: bad requests while another client's
streams go on, bad starts alone and under mpirun. hostile_test has the table of bad files."""
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import unittest

import harness
import hostile_files
from harness import BINARY, Job, Server, Stream, api, chat_request, grpc, ids_request, mpirun, read, sampling

VOCAB, CONTEXT = 512, 2048  # of tiny-llama3
server = None


def setUpModule():
    global server
    server = Server(harness.tiny_model(), ranks=3)


def tearDownModule():
    server.close()


# (fields, code, what the message must contain), for Generate with a prompt of three ids.
BAD_FIELDS = [
    ({"max_tokens": 0}, "INVALID_ARGUMENT", "max_tokens: found 0, allowed: 1 to 2045"),
    ({"max_tokens": -1}, "INVALID_ARGUMENT", "max_tokens: found -1"),
    ({"max_tokens": CONTEXT - 2}, "INVALID_ARGUMENT", "max_tokens: found 2046, allowed: 1 to 2045"),
    ({"min_tokens": -1}, "INVALID_ARGUMENT", "min_tokens: found -1, allowed: 0 to max_tokens, which is 2045"),
    ({"min_tokens": 5, "max_tokens": 4}, "INVALID_ARGUMENT", "min_tokens: found 5, allowed: 0 to max_tokens, which is 4"),
    ({"n": 0}, "INVALID_ARGUMENT", "n: found 0, allowed: 1 to 128"),
    ({"n": 129}, "INVALID_ARGUMENT", "n: found 129, allowed: 1 to 128"),
    ({"priority": 1}, "UNIMPLEMENTED", "priority: is set"),
    ({"logprobs": -1}, "INVALID_ARGUMENT", "logprobs: found -1, allowed: 0 to 20"),
    ({"logprobs": 21}, "INVALID_ARGUMENT", "logprobs: found 21"),
    ({"stop": [""]}, "INVALID_ARGUMENT", "stop[0]: found an empty string"),
    ({"stop": ["a", "x" * 257]}, "INVALID_ARGUMENT", "stop[1]: found 257 bytes"),
    ({"stop": ["a"] * 17}, "INVALID_ARGUMENT", "stop: found 17 strings"),
    ({"stop_token_ids": [VOCAB]}, "INVALID_ARGUMENT", "stop_token_ids[0]: found 512, allowed: 0 to 511"),
    ({"request_id": ""}, "INVALID_ARGUMENT", "request_id: found nothing"),
    ({"request_id": "a b"}, "INVALID_ARGUMENT", "request_id: found a character"),
    ({"request_id": "x" * 129}, "INVALID_ARGUMENT", "request_id: found 129 bytes"),
    ({"metadata": {str(key): "" for key in range(17)}}, "INVALID_ARGUMENT", "metadata: found 17 entries"),
    ({"metadata": {"key": "v" * 513}}, "INVALID_ARGUMENT", "metadata: found 513 bytes"),
]

BAD_SAMPLING = [
    ({"temperature": -0.1}, "INVALID_ARGUMENT", "sampling.temperature: found -0.1, allowed: 0 (greedy) to 100"),
    ({"temperature": math.nan}, "INVALID_ARGUMENT", "sampling.temperature: found nan"),
    ({"temperature": math.inf}, "INVALID_ARGUMENT", "sampling.temperature: found inf"),
    ({"top_p": 0.0}, "INVALID_ARGUMENT", "sampling.top_p: found 0"),
    ({"top_p": 1.5}, "INVALID_ARGUMENT", "sampling.top_p: found 1.5"),
    ({"top_p": math.nan}, "INVALID_ARGUMENT", "sampling.top_p: found nan"),
    ({"top_k": -1}, "INVALID_ARGUMENT", "sampling.top_k: found -1, allowed: 0 to 512"),
    ({"top_k": VOCAB + 1}, "INVALID_ARGUMENT", "sampling.top_k: found 513"),
    ({"min_p": -0.1}, "INVALID_ARGUMENT", "sampling.min_p: found -0.1, allowed: 0 (off) to 1"),
    ({"min_p": math.nan}, "INVALID_ARGUMENT", "sampling.min_p: found nan"),
    ({"repetition_penalty": 0.0}, "INVALID_ARGUMENT", "sampling.repetition_penalty: found 0, allowed: 0.01 to 10"),
    ({"frequency_penalty": 2.5}, "INVALID_ARGUMENT", "sampling.frequency_penalty: found 2.5, allowed: -2 to 2"),
    ({"presence_penalty": -2.5}, "INVALID_ARGUMENT", "sampling.presence_penalty: found -2.5, allowed: -2 to 2"),
    ({"logit_bias": {3: 101.0}}, "INVALID_ARGUMENT", "sampling.logit_bias[3]: found 101, allowed: -100 to 100"),
    ({"logit_bias": {VOCAB: 1.0}}, "INVALID_ARGUMENT", "sampling.logit_bias, a token id: found 512, allowed: 0 to 511"),
    ({"logit_bias": {key: 1.0 for key in range(301)}}, "INVALID_ARGUMENT", "sampling.logit_bias: found 301 entries"),
]


class Neighbour(threading.Thread):
    """Another client, whose streams are compared all the while with what they said before."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stub = server.connect()[0]
        self.request = ids_request([5, 6, 7, 8], max_tokens=300, ignore_eos=True)
        self.expected = read(self.stub.Generate(self.request, timeout=30)).ids
        self.rounds, self.error, self.over = 0, None, threading.Event()
        self.start()

    def run(self):
        try:
            while not self.over.is_set():
                ids = read(self.stub.Generate(self.request, timeout=30)).ids
                assert ids == self.expected, f"round {self.rounds}: {ids}"
                self.rounds += 1
        except Exception as error:  # for the test, which looks at it at the end
            self.error = error


class BadRequests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.neighbour = Neighbour()

    @classmethod
    def tearDownClass(cls):
        neighbour = cls.neighbour
        neighbour.over.set()
        neighbour.join(60)
        assert neighbour.error is None, neighbour.error
        assert neighbour.rounds > 2, "the other client had no turn"

    def refused(self, call, request, code, part):
        with self.subTest(part):
            found, message = harness.refusal(call, request)
            self.assertEqual(found, code, message)
            self.assertIn(part, message)
            self.assertTrue(self.neighbour.is_alive(), self.neighbour.error)

    def test_fields(self):
        for fields, code, part in BAD_FIELDS:
            self.refused(server.inference.Generate, ids_request([1, 2, 3], **fields), code, part)
        for fields, code, part in BAD_SAMPLING:
            request = ids_request([1, 2, 3], sampling=api().pb.Sampling(**fields))
            self.refused(server.inference.Generate, request, code, part)

    def test_prompts(self):
        pb = api().pb
        generate = server.inference.Generate
        for request, part in (
                (pb.GenerateRequest(), "prompt: found neither text nor token_ids"),
                (pb.GenerateRequest(text=""), "text: found an empty text"),
                (pb.GenerateRequest(text="x" * ((1 << 20) + 1)), "text: found 1048577 bytes"),
                (ids_request([]), "token_ids: found no token"),
                (ids_request([1, VOCAB]), "token_ids.ids[1]: found 512, allowed: 0 to 511"),
                (ids_request([-1]), "token_ids.ids[0]: found -1"),
                (ids_request([1] * CONTEXT), "token_ids: found 2048 tokens, allowed: at most 2047"),
                (ids_request([1] * 500_000), "token_ids: found 500000 tokens"),
                (pb.GenerateRequest(text="word " * 5000), "the context served is 2048")):
            self.refused(generate, request, "INVALID_ARGUMENT", part)

    def test_conversations(self):
        pb = api().pb
        chat = server.inference.Chat
        message = pb.ChatMessage
        self.refused(chat, pb.ChatRequest(), "INVALID_ARGUMENT", "messages: found none")
        self.refused(chat, pb.ChatRequest(messages=[message(role="robot", content="x")]),
                     "INVALID_ARGUMENT", 'messages[0].role: found "robot"')
        self.refused(chat, pb.ChatRequest(messages=[message(role="user", content="x", name="Ann")]),
                     "UNIMPLEMENTED", "messages[0].name")
        call = pb.ToolCall(name="f", arguments_json="{}")
        self.refused(chat, pb.ChatRequest(messages=[message(role="user", content="x", tool_calls=[call])]),
                     "INVALID_ARGUMENT", 'messages[0].tool_calls: found them with the role "user"')
        for tools, what in (("[]", "found 0 tools"), ("[{", "at byte 3"), ('[{"name": 1}]', "found a int"),
                            ('[{"name": "f"}, {"type": "function", "function": {}}]', "")):
            self.refused(chat, pb.ChatRequest(messages=[message(role="user", content="x")], tools_json=tools),
                         "INVALID_ARGUMENT", what)
        self.refused(chat, chat_request("word " * 5000), "INVALID_ARGUMENT", "the context served is 2048")

    def test_other_calls(self):
        pb = api().pb
        self.refused(server.inference.Detokenize, pb.DetokenizeRequest(token_ids=[VOCAB]),
                     "INVALID_ARGUMENT", "token_ids[0]: found 512")
        self.refused(server.inference.Abort, pb.AbortRequest(request_id="nobody"), "NOT_FOUND",
                     "cannot abort nobody")

    def test_bytes_that_are_no_request(self):
        with grpc.insecure_channel(server.address) as channel:
            def call(method):
                return channel.unary_stream(f"/trireme.v1.Inference/{method}",
                                            request_serializer=bytes, response_deserializer=bytes)
            # A field of a later version: number 999, varint 1.
            later = ids_request([1, 2, 3]).SerializeToString() + b"\xb8\x3e\x01"
            self.refused(call("Generate"), later, "UNIMPLEMENTED", "field number 999")
            # text = a byte that is no UTF-8; then no protobuf at all; then more than a message may have.
            for request in (b"\x12\x01\xff", b"\xff" * 100):
                self.assertIn(harness.refusal(call("Generate"), request)[0],
                              ("INTERNAL", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
            self.assertEqual(harness.refusal(call("Generate"), b"\0" * (64 << 20))[0], "RESOURCE_EXHAUSTED")
            self.assertEqual(harness.refusal(call("Nothing"), b"")[0], "UNIMPLEMENTED")

    def test_an_id_runs_once(self):
        codes = set()
        # On a busy machine the first may have ended before the second is asked.
        for _ in range(5):
            first = Stream(server.inference.Generate(
                ids_request([1, 2, 3], max_tokens=2000, ignore_eos=True, request_id="twice"))).wait_begun()
            while first.is_alive():
                try:
                    read(server.inference.Generate(ids_request([1], max_tokens=1, request_id="twice")))
                except grpc.RpcError as error:
                    codes.add(error.code().name)
            self.assertEqual(len(first.result().ids), 2000)
            if codes:
                break
        self.assertEqual(codes, {"ALREADY_EXISTS"})


class FullQueue(unittest.TestCase):
    def test_is_said_at_once(self):
        with Server(harness.tiny_model(), "--max_sequences", "1", "--max_queue", "2", ranks=1) as small:
            request = ids_request([1, 2, 3], max_tokens=2000, ignore_eos=True)
            streams = [Stream(small.inference.Generate(request)) for _ in range(30)]
            ends = [stream.wait_end() for stream in streams]
            refused = [stream.error for stream in ends if stream.error]
            self.assertTrue(refused)
            for error in refused:
                self.assertEqual(error.code().name, "RESOURCE_EXHAUSTED")
                self.assertIn("--max_queue allows 2", error.details())
            answers = [stream.answer.ids for stream in ends if not stream.error]
            self.assertTrue(answers)
            self.assertTrue(all(ids == answers[0] and len(ids) == 2000 for ids in answers))
            self.assertEqual(small.drain(), 0)


# Flags after `--model tiny-llama3`, and what the last line must contain.
BAD_FLAGS = [
    (["--what"], "--what"),
    (["--dtype", "int9"], "--dtype: int9"),
    (["--dtype", "/dev/null"], "cannot read /dev/null"),
    (["--tp", "0"], "--tp"),
    (["--pp", "4"], "--pp 4 is more than its 3 layers"),
    (["--listen", "0.0.0.0:0"], "--tls_cert"),
    (["--listen", "here"], "the port is missing"),
    (["--device_map", "/nonexistent"], "/nonexistent"),
    (["--token_file", "/nonexistent"], "/nonexistent"),
    (["--max_memory", "cpu=much"], "--max_memory"),
]


class BadStarts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="trireme-bad-")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def refused(self, arguments, part, ranks=1):
        with self.subTest(part, ranks=ranks):
            end = harness.run(*arguments, ranks=ranks, seconds=15)
            self.assertEqual(end.status, 2, end.log)
            self.assertIn(part, end.last_word)
            self.assertEqual(end.out, "")
            if ranks == 1:
                self.assertEqual(end.lines[-1], end.last_word)
            else:
                # One rank speaks for all, in one line.
                self.assertEqual(len([line for line in end.lines if line.startswith("trireme: ")]), 1, end.log)

    def test_flags(self):
        model = harness.tiny_model()
        for flags, part in BAD_FLAGS:
            self.refused(["serve", "--model", model, "--listen", "127.0.0.1:0", *flags]
                         if "--listen" not in flags else ["serve", "--model", model, *flags], part)
        self.refused(["serve", "--model", "/nonexistent"], "cannot read /nonexistent")
        self.refused(["generate", "--model", model], "nothing to answer")
        self.refused(["bogus"], "bogus")

    def test_a_job_ends_with_the_same_words(self):
        model = harness.tiny_model()
        self.refused(["serve", "--model", "/nonexistent"], "cannot read /nonexistent", ranks=3)
        self.refused(["serve", "--model", model, "--what"], "--what", ranks=3)
        self.refused(["serve", "--model", model, "--tp", "3"], "start mpirun with -n 4", ranks=3)
        for change, part in ((hostile_files.CUT_SHORT, "it is truncated; download it again"),
                             (hostile_files.TENSOR_MISSING, "is missing"),
                             (hostile_files.pickled, "safetensors are needed")):
            _, flag, path, *_ = change(tempfile.mkdtemp(dir=self.folder))
            self.refused(["serve", flag, path, "--listen", "127.0.0.1:0"], part, ranks=3)

    def test_a_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for ranks in (1, 3):
                self.refused(["serve", "--model", harness.tiny_model(), "--listen", address],
                             f"cannot listen on {address}: Address already in use", ranks)
        # A second server on the port of a running one must not share its calls.
        self.refused(["serve", "--model", harness.tiny_model(), "--listen", server.address],
                     "Address already in use")
        self.assertTrue(server.load().blocks_total)

    def test_a_signal_ends_a_start(self):
        model = harness.demo_model()
        with Job([*mpirun(3), BINARY, "serve", "--model", model, "--listen", "127.0.0.1:0"]) as job:
            harness.wait_until(lambda: "replica  stage" in job.log(), 30, "the placement is said")
            os.kill(job.ranks()[0], signal.SIGTERM)
            self.assertEqual(job.wait(15), 1)
            self.assertIn("stopped by a signal", job.last_word())


if __name__ == "__main__":
    harness.main(limit_s=110)

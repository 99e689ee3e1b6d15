# SPDX-License-Identifier: Apache-2.0
"""The demo model on three ranks, asked over gRPC: what a client sees, alone and among 63 others."""
import math
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import unittest

import harness
from harness import Server, Stream, api, chat_request, read, sampling

server = None


def setUpModule():
    global server
    server = Server(harness.demo_model(), ranks=3)


def tearDownModule():
    server.close()


def chat(text, timeout=60, **fields):
    return read(server.inference.Chat(chat_request(text, **fields), timeout=timeout))


def many_requests(count):
    """Different prompts; every second one is drawn by a seed of its own."""
    subjects = ["the sea", "a bridge", "seven cats", "Paris", "prime numbers", "snow", "an old piano", "bread"]
    tasks = ["Write a line about {}.", "Why do people like {}?", "Explain {} to a child who asks.",
             "List three words that go with {}.", "What is {}?", "Tell a joke about {}, please.",
             "Translate \"{}\" to French.", "What would a poet of the last century say of {}, and why?"]
    requests = []
    for number in range(count):
        text = tasks[number // len(subjects)].format(subjects[number % len(subjects)])
        drawn = sampling(0.8, top_p=0.95, top_k=50, seed=1000 + number)
        requests.append(chat_request(text, max_tokens=24,
                                     sampling=drawn if number % 2 else sampling()))
    return requests


class Answers(unittest.TestCase):
    def test_knows_the_capital_of_france(self):
        answer = chat("What is the capital of France?", max_tokens=64)
        self.assertIn("Paris", answer.text)
        self.assertEqual(answer.finished.finish_reason, api().pb.FINISH_REASON_STOP)
        self.assertEqual(answer.finished.matched_stop, str(answer.ids[-1]))
        self.assertNotIn("<|im_end|>", answer.text)

    def test_pieces_make_the_whole_text(self):
        # Characters of several tokens: no piece may hold a part of one.
        answer = chat("Repeat exactly: 你好, Grüße, привет, 🙂🚀", max_tokens=48, ignore_eos=True)
        pb = api().pb
        whole = server.inference.Detokenize(pb.DetokenizeRequest(token_ids=answer.ids)).text
        self.assertEqual(answer.text, whole)
        self.assertEqual(len(answer.ids), 48)
        self.assertEqual(answer.finished.finish_reason, pb.FINISH_REASON_LENGTH)

    def test_usage_counts_the_rendered_prompt(self):
        pb = api().pb
        text = "one two three"
        ids = server.inference.Tokenize(pb.TokenizeRequest(text=text)).token_ids
        self.assertEqual(server.inference.Detokenize(pb.DetokenizeRequest(token_ids=ids)).text, text)
        request = pb.GenerateRequest(text=text, sampling=sampling(), max_tokens=3)
        answer = read(server.inference.Generate(request, timeout=60))
        # A bos at most: a plain text has no chat format.
        self.assertIn(answer.finished.usage.prompt_tokens - len(ids), (0, 1))
        with_system = chat(text, system="Answer in one word.", max_tokens=2)
        self.assertGreater(with_system.finished.usage.prompt_tokens, len(ids) + 5)

    def test_streams_as_it_goes(self):
        events = list(server.inference.Chat(chat_request("Count to thirty.", max_tokens=40, ignore_eos=True),
                                            timeout=60))
        # Deltas may be merged while a client does not read; this one reads at once.
        self.assertGreater(len(events), 10)

    def test_64_streams_say_what_each_says_alone(self):
        count = 64 if harness.PATIENCE == 1 else 12  # under sanitizers a token takes ten times as long, and more
        requests = many_requests(count)
        alone = [read(server.inference.Chat(request, timeout=120)) for request in requests]
        order = list(range(count))
        random.Random(5).shuffle(order)
        # Eight connections, as from several clients.
        stubs = [server.connect()[0] for _ in range(8)]
        streams = {number: Stream(stubs[number % 8].Chat(requests[number], timeout=240))
                   for number in order}
        for number, stream in streams.items():
            together = stream.result(240)
            self.assertEqual(together.text, alone[number].text, f"request {number}")
            self.assertEqual(together.ids, alone[number].ids, f"request {number}")
        # The draws are draws: not all seeded answers may be the greedy ones.
        greedy = chat_request("What is the sea?", max_tokens=24)
        texts = {read(server.inference.Chat(greedy, timeout=60)).text}
        for seed in range(4):
            texts.add(chat("What is the sea?", max_tokens=24, sampling=sampling(1.0, seed=seed)).text)
        self.assertGreater(len(texts), 2)
        server.wait_free()

    def test_logprobs_are_of_the_raw_logits(self):
        answer = chat("What is the capital of France?", max_tokens=8, logprobs=5)
        self.assertEqual(len(answer.logprobs), len(answer.ids))
        for token, best in zip(answer.ids, answer.logprobs):
            values = [one.logprob for one in best.top]
            self.assertEqual(len(values), 5)
            self.assertEqual(best.top[0].id, token)
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertLessEqual(sum(math.exp(value) for value in values), 1 + 1e-5)
        # Temperature changes the draw, not what is told of it.
        drawn = chat("What is the capital of France?", max_tokens=1, logprobs=5,
                     sampling=sampling(5.0, seed=3))
        self.assertEqual(drawn.logprobs[0], answer.logprobs[0])

    def test_stops_before_a_stop_string(self):
        question = "Count from one to ten in words."
        whole = chat(question, max_tokens=40).text
        for begin, end in ((5, 8), (11, 24)):  # within a token or so, and over several
            stop = whole[begin:end]
            answer = chat(question, max_tokens=40, stop=["never said", stop])
            self.assertEqual(answer.text, whole[:whole.index(stop)])
            self.assertEqual(answer.finished.finish_reason, api().pb.FINISH_REASON_STOP)
            self.assertEqual(answer.finished.matched_stop, stop)

    def test_stops_at_a_stop_id(self):
        question = "Count from one to ten in words."
        whole = chat(question, max_tokens=40).ids
        stop = whole[6]
        answer = chat(question, max_tokens=40, stop_token_ids=[stop])
        self.assertEqual(answer.ids, whole[:whole.index(stop) + 1])
        self.assertEqual(answer.finished.matched_stop, str(stop))
        before = api().pb.DetokenizeRequest(token_ids=answer.ids[:-1])
        self.assertEqual(answer.text, server.inference.Detokenize(before).text)

    def test_ignore_eos_goes_on(self):
        question = "What is the capital of France?"
        short = chat(question, max_tokens=32)
        long = chat(question, max_tokens=32, ignore_eos=True)
        self.assertLess(len(short.ids), 32)
        self.assertEqual(len(long.ids), 32)
        self.assertEqual(long.ids[:len(short.ids)], short.ids)
        self.assertEqual(long.finished.finish_reason, api().pb.FINISH_REASON_LENGTH)


# One that is to be interrupted.
def long_request(**fields):
    return chat_request("Tell a very long story.", max_tokens=4000, ignore_eos=True, **fields)


# A client of its own process, which says when it has its first event and reads on.
VANISHING = """
import sys
sys.path.insert(0, sys.argv[1])
import harness
channel = harness.grpc.insecure_channel(sys.argv[2])
stub = harness.api().rpc.InferenceStub(channel)
request = harness.chat_request("Tell a very long story.", max_tokens=4000, ignore_eos=True)
for number, _ in enumerate(stub.Chat(request)):
    if number == 0:
        print("begun", flush=True)
"""


class Ends(unittest.TestCase):
    def setUp(self):
        server.wait_free()

    def tearDown(self):
        server.wait_free()

    def test_a_dropped_stream_frees_its_place(self):
        streams = [Stream(server.inference.Chat(long_request())) for _ in range(8)]
        for stream in streams:
            stream.wait_begun()
        load = server.load()
        self.assertEqual(load.running, 8)
        self.assertLess(load.blocks_free, load.blocks_total)
        for stream in streams[:5]:
            stream.call.cancel()
        harness.wait_until(lambda: server.load().running == 3, 3, "three requests are left")
        for stream in streams[5:]:
            stream.call.cancel()
        server.wait_free()
        for stream in streams:
            self.assertEqual(stream.wait_end().error.code().name, "CANCELLED")

    def test_abort_ends_a_request(self):
        pb = api().pb
        stream = Stream(server.inference.Chat(long_request(request_id="to-abort"))).wait_begun()
        server.inference.Abort(pb.AbortRequest(request_id="to-abort"), timeout=10)
        self.assertEqual(stream.wait_end(5).error.code().name, "CANCELLED")
        self.assertEqual(harness.refusal(server.inference.Abort, pb.AbortRequest(request_id="to-abort"))[0],
                         "NOT_FOUND")

    def test_a_vanished_client_harms_nobody(self):
        question = chat_request("Why is the sky blue?", max_tokens=60)
        alone = read(server.inference.Chat(question, timeout=60))
        client = subprocess.Popen(
            [sys.executable, "-c", VANISHING, str(harness.ROOT / "tests/end_to_end"), server.address],
            stdout=subprocess.PIPE, text=True)
        try:
            self.assertEqual(client.stdout.readline().strip(), "begun")
            self.assertEqual(server.load().running, 1)
            neighbour = Stream(server.inference.Chat(question, timeout=60)).wait_begun()
        finally:
            client.send_signal(signal.SIGKILL)
            client.wait(10)
            client.stdout.close()
        self.assertEqual(neighbour.result().text, alone.text)

    def test_a_deadline_is_never_a_short_answer(self):
        request = long_request(request_id="too-late")
        stream = Stream(server.inference.Chat(request, timeout=0.7 if harness.PATIENCE == 1 else 20)).wait_begun()
        self.assertEqual(stream.wait_end(5).error.code().name, "DEADLINE_EXCEEDED")
        self.assertIsNone(stream.answer.finished)
        server.wait_free()
        # Client and server look at their own clocks: either may be the first to end it.
        self.assertRegex(server.log(), r"request too-late: (DEADLINE_EXCEEDED|cancelled)")


class UnixSocket(unittest.TestCase):
    def test_is_for_its_owner_only(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "trireme.sock")
            with Server(harness.tiny_model(), ranks=1, listen=f"unix:{path}") as alone:
                mode = os.stat(path).st_mode
                self.assertTrue(stat.S_ISSOCK(mode))
                self.assertEqual(stat.S_IMODE(mode), 0o600)
                self.assertEqual(alone.address, f"unix:{path}")
                self.assertEqual(stat.S_IMODE(os.stat(alone.address_file).st_mode), 0o600)
                answer = read(alone.inference.Generate(harness.ids_request([1, 2, 3], max_tokens=5),
                                                       timeout=30))
                self.assertTrue(answer.ids)
                self.assertEqual(alone.drain(), 0)
                self.assertFalse(os.path.exists(path))
                self.assertFalse(alone.address_file.exists())


if __name__ == "__main__":
    harness.main(limit_s=220)

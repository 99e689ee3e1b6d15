# SPDX-License-Identifier: Apache-2.0
"""Starts Trireme as its users do, speaks to it by gRPC, and leaves no process behind.

Every process that a test starts carries a mark in its environment, which its children inherit: by the
mark a test finds the ranks of its job, and sees afterwards whether one outlived it. Every wait is bounded.
"""
import atexit
import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = str(Path(os.environ.get("TRIREME_BUILD_DIR", ROOT / "build")) / "trireme")
RUN = ROOT / "launch/trireme-run"
SHARED = ROOT.parent / "shared"
START_S = 60   # until a server answers; the demo model takes a few seconds
END_S = 20     # until a job that was told to end has ended
SKIP_STATUS = 77
PATIENCE = int(os.environ.get("TRIREME_TEST_PATIENCE", "1"))  # times as long, for builds that are slow: sanitizers


def use_virtual_environment():
    """The pinned gRPC of tests/python_environment lives there."""
    python = ROOT / ".venv/bin/python"
    if python.exists() and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        os.execv(python, [str(python), *sys.argv])


def skip_script(reason):
    print(f"SKIPPED: {reason}")
    sys.exit(SKIP_STATUS)


use_virtual_environment()
sys.path.insert(0, str(ROOT / "tests/support/hosts"))
from marked import MARK, end_processes, marked, ranks_of  # noqa: E402
try:
    import grpc
    import grpc_health  # noqa: F401 (here to be missed early)
    import grpc_reflection
    import grpc_tools
except ImportError as missing:
    skip_script(f"{missing}; tests/python_environment installs it into .venv")


def use_own_cache():
    """What this script's jobs measure of a busy machine is not for the next script, nor for the user's own jobs."""
    folder = tempfile.mkdtemp(prefix="trireme-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = folder


use_own_cache()


# ---- what is tested ----

def demo_model():
    path = ROOT / ".models/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        raise unittest.SkipTest(f"{path.relative_to(ROOT)} is absent; tests/run downloads it")
    return str(path)


def tiny_model(name="tiny-llama3"):
    return str(ROOT / "tests/data" / name)


def shared_model(name):
    path = SHARED / "data/models" / name
    if not path.exists():
        raise unittest.SkipTest("../shared is absent")
    return path


def mpirun(ranks, recovery=False):
    """setpriv: should this test be killed, its job ends too."""
    command = ["setpriv", "--pdeathsig", "TERM", "mpirun", "-n", str(ranks)]
    if recovery:
        command.append("--enable-recovery")
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    return [*command, "--oversubscribe", "--bind-to", "none"]


def trireme_run(*options):
    """A Server's launcher: launch/trireme-run, in place of mpirun."""
    return ["setpriv", "--pdeathsig", "TERM", RUN, *options, "--binary"]


@functools.cache
def api():
    """The client stubs, generated from proto/: `pb` the messages, `rpc` the services."""
    from grpc_tools import protoc
    folder = tempfile.mkdtemp(prefix="trireme-stubs-")
    try:
        status = protoc.main(["protoc", f"-I{ROOT}/proto", f"--python_out={folder}",
                              f"--grpc_python_out={folder}", "cluster.proto", "inference.proto"])
        assert status == 0, "protoc failed"
        sys.path.insert(0, folder)
        return types.SimpleNamespace(pb=importlib.import_module("inference_pb2"),
                                     rpc=importlib.import_module("inference_pb2_grpc"))
    finally:
        shutil.rmtree(folder)


# ---- processes ----

def wait_until(condition, seconds, what):
    """The condition's value as soon as it is true."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds * PATIENCE} s still not: {what}")
        time.sleep(0.01)


class Job:
    """A command, alone or under mpirun, with all processes that come of it."""

    def __init__(self, command, environment=None):
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="trireme-test-"))
        self.out_path, self.log_path = self.folder / "stdout", self.folder / "stderr"
        with open(self.out_path, "wb") as out, open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [part if isinstance(part, bytes) else str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                env={**os.environ, **(environment or {}), MARK: self.mark}, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def out(self):
        return self.out_path.read_text(errors="replace")

    def log_lines(self):
        return [line for line in self.log().splitlines() if line.strip()]

    def last_word(self):
        """The last line of ours on stderr; mpirun adds some of its own below."""
        ours = [line for line in self.log_lines() if line.startswith("trireme: ")]
        return ours[-1] if ours else ""

    def members(self):
        """The environments of all living processes of this job, by pid."""
        return marked(self.mark)

    def ranks(self):
        """Pids by rank; {0: pid} for a job without mpirun."""
        return ranks_of(self.members()) or {0: self.process.pid}

    def wait(self, seconds=END_S):
        """The exit status, after a look for processes that outlived the job."""
        try:
            status = self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds * PATIENCE} s; its stderr:\n{self.log()}") from None
        # The launcher's own children are reaped with it; a rank may be a moment later.
        wait_until(lambda: not self.members(), 3, "every process of the job has ended")
        return status

    def close(self):
        end_processes(self.members())
        self.process.wait(END_S)
        shutil.rmtree(self.folder, ignore_errors=True)


def run(*arguments, ranks=1, seconds=60):
    """`trireme ARGUMENTS` from start to end: status, out, log, last_word."""
    launcher = mpirun(ranks) if ranks > 1 else []
    with Job([*launcher, BINARY, *arguments]) as job:
        start = time.monotonic()
        status = job.wait(seconds)
        return types.SimpleNamespace(status=status, out=job.out(), log=job.log(),
                                     last_word=job.last_word(), lines=job.log_lines(),
                                     seconds=time.monotonic() - start)


class Server(Job):
    """`trireme serve`, ready to answer."""

    def __init__(self, model, *options, ranks=3, recovery=False, listen="127.0.0.1:0", launcher=None,
                 environment=None, ready=True):
        """launcher: in place of mpirun. ready=False: does not wait until it answers; the test calls wait_ready()."""
        self.address_file = Path(tempfile.mkdtemp(prefix="trireme-address-")) / "address"
        if launcher is None:
            launcher = mpirun(ranks, recovery) if ranks > 1 else []
        super().__init__([*launcher, BINARY, "serve", "--model", model, "--listen", listen,
                          "--address_file", self.address_file, *options], environment)
        self._channels = []
        if ready:
            self.wait_ready()

    def wait_ready(self):
        try:
            wait_until(self._ready, START_S, "the server answers")
        except AssertionError as error:
            log = self.log()
            self.close()
            raise AssertionError(f"{error}; its stderr:\n{log}") from None
        self.address = self.address_file.read_text().strip()
        self.inference, self.cluster = self.connect()

    def _ready(self):
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
        return self.address_file.exists()

    def connect(self):
        """Stubs over a connection of their own."""
        channel = grpc.insecure_channel(self.address,
                                        options=[("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return api().rpc.InferenceStub(channel), api().rpc.ClusterStub(channel)

    def load(self):
        return self.cluster.GetLoad(api().pb.GetLoadRequest(), timeout=5)

    def stage_ranks(self):
        """The rank of each stage of a pipeline without TP, from the table in the log: measured speeds decide."""
        rows = re.findall(r"^ +0 +(\d+) +(\d+) +\S+ +\S+ x\d", self.log(), re.MULTILINE)
        ranks = {int(stage): int(rank) for stage, rank in rows}
        assert rows and len(ranks) == len(rows), self.log()
        return [ranks[stage] for stage in range(len(ranks))]

    def wait_free(self, seconds=3):
        """Until no request runs or waits and every KV block is free again."""
        def free():
            load = self.load()
            return (load.running == 0 and load.waiting == 0 and
                    load.blocks_free == load.blocks_total > 0)
        wait_until(free, seconds, "places and blocks of ended requests are free")

    def drain(self):
        """Ends the server by SIGTERM to rank 0 alone; its status."""
        os.kill(self.ranks()[0], signal.SIGTERM)
        return self.wait()

    def close(self):
        for channel in self._channels:
            channel.close()
        super().close()
        shutil.rmtree(self.address_file.parent, ignore_errors=True)


# ---- requests ----

def sampling(temperature=0.0, **fields):
    return api().pb.Sampling(temperature=temperature, **fields)


def chat_request(text, system=None, **fields):
    """Greedy unless told otherwise."""
    pb = api().pb
    messages = [pb.ChatMessage(role="user", content=text)]
    if system is not None:
        messages.insert(0, pb.ChatMessage(role="system", content=system))
    fields.setdefault("sampling", sampling())
    return pb.ChatRequest(messages=messages, **fields)


def ids_request(ids, **fields):
    pb = api().pb
    fields.setdefault("sampling", sampling())
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), **fields)


class Answer:
    """What a stream has said, held to its grammar: deltas, then exactly one `finished`."""

    def __init__(self):
        self.text, self.ids, self.logprobs, self.finished = "", [], [], None

    def add(self, reply):
        assert self.finished is None, "an event after `finished`"
        kind = reply.WhichOneof("event")
        if kind == "delta":
            self.text += reply.delta.text
            self.ids += reply.delta.token_ids
            self.logprobs += reply.delta.logprobs
        else:
            assert kind == "finished", f"an event of kind {kind}"
            self.finished = reply.finished

    def check_end(self):
        assert self.finished is not None, "the stream ended without `finished`"
        assert self.finished.usage.completion_tokens == len(self.ids), "usage miscounts the tokens"
        assert self.finished.usage.prompt_tokens > 0
        return self


def read(call):
    """All of a stream that is to end well."""
    answer = Answer()
    for reply in call:
        answer.add(reply)
    return answer.check_end()


class Stream(threading.Thread):
    """A stream that is read beside the test: `answer` grows; `error` and `ended_at` tell its end."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.answer, self.error, self.ended_at = call, Answer(), None, None
        self._begun = threading.Event()
        self.start()

    def run(self):
        try:
            for reply in self.call:
                self.answer.add(reply)
                self._begun.set()
            self.answer.check_end()
        except Exception as error:  # for the thread that looks at it
            self.error = error
        self.ended_at = time.monotonic()
        self._begun.set()

    def begun(self):
        return self._begun.is_set()

    def wait_begun(self):
        assert self._begun.wait(30 * PATIENCE), f"no event within {30 * PATIENCE} s"
        if self.error:
            raise self.error
        return self

    def wait_end(self, seconds=60):
        self.join(seconds * PATIENCE)
        assert self.ended_at is not None, f"the stream is still open after {seconds * PATIENCE} s"
        return self

    def result(self, seconds=60):
        self.wait_end(seconds)
        if self.error:
            raise self.error
        return self.answer


def refusal(call_or_stub, request):
    """Code and message of a call that must fail."""
    try:
        answer = call_or_stub(request, timeout=30)
        if hasattr(answer, "__iter__"):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the call succeeded")


# ---- the end ----

def print_bar(bar, value, target, ok, **beside):
    print(json.dumps({"bar": bar, "value": value, "target": target, "ok": ok, **beside}), flush=True)


def main(limit_s):
    """Runs the tests of the calling script; if all were skipped, says why and ends as a skip."""
    def too_long(*_):
        raise TimeoutError(f"the whole script may take {limit_s * PATIENCE} s")
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit_s * PATIENCE)
    if not os.access(BINARY, os.X_OK):
        print(f"FAILED: {BINARY} is not built")
        sys.exit(1)
    result = unittest.main(module="__main__", verbosity=2, exit=False).result
    reasons = sorted({reason for _, reason in result.skipped})
    for reason in reasons:
        print(f"SKIPPED: {reason}")
    if not result.wasSuccessful():
        sys.exit(1)
    # setUpModule's skip counts as one, with no test run.
    sys.exit(SKIP_STATUS if reasons and len(result.skipped) >= result.testsRun else 0)

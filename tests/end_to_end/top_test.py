# SPDX-License-Identifier: Apache-2.0
"""`trireme top` on a terminal and beside one."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unittest

import harness
from harness import BINARY, Server, Stream, chat_request


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command, rows=24, columns=80):
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(follower)
        self.follower = follower
        self.process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
        self.seen = b""

    def read(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.leader], [], [], 0.05)[0]:
                self.seen += os.read(self.leader, 65536)

    def wait_for(self, text, seconds=10):
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            assert time.monotonic() < end, f"{text!r} is not in {self.seen!r}"
            self.read(0.1)

    def page(self):
        """What the last whole page showed, without colours."""
        pages = self.seen.split(b"\033[H")
        page = pages[-2] if len(pages) > 2 else pages[-1]
        return re.sub(r"\033\[[0-9;?]*[a-zA-Z]", "", page.decode(errors="replace"))

    def end(self, seconds=5):
        status = self.process.wait(seconds)
        self.read(0.2)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


class Top(unittest.TestCase):
    def terminal(self, server, *flags, **size):
        terminal = Terminal([BINARY, "top", "--server", server.address, *flags], **size)
        self.addCleanup(terminal.close)
        return terminal

    def test_live(self):
        with Server(harness.demo_model(), "--pp", "2", ranks=3) as server:
            terminal = self.terminal(server, "--interval", "200ms")
            stream = Stream(server.inference.Chat(chat_request(
                "Tell a very long story.", max_tokens=6000, ignore_eos=True))).wait_begun()
            terminal.wait_for("SERVING")
            terminal.wait_for("running 1")
            terminal.read(1.5)
            page = terminal.page()
            self.assertRegex(page, r"out \d+/s")
            self.assertRegex(page, r"[12] 0/0 +serving")
            self.assertRegex(page, r"2 0/1 +serving")
            for line in page.split("\r\n"):
                self.assertLessEqual(len(line), 80, page)
            os.kill(server.ranks()[2], signal.SIGSTOP)
            terminal.wait_for("NOT SERVING")
            terminal.read(0.5)
            self.assertRegex(terminal.page(), r"2 0/1 +suspected")
            self.assertIn("silent: no heartbeat for", terminal.page())
            os.kill(server.ranks()[2], signal.SIGCONT)
            stream.call.cancel()
            os.write(terminal.leader, b"q")
            self.assertEqual(terminal.end(), 0)
            # The terminal is as it was.
            self.assertEqual(termios.tcgetattr(terminal.follower), terminal.before)
            self.assertTrue(terminal.seen.startswith(b"\033[?1049h\033[?25l"))
            self.assertTrue(terminal.seen.endswith(b"\033[?25h\033[?1049l"))

    def test_says_that_the_server_has_ended(self):
        with Server(harness.tiny_model(), ranks=3) as server:
            terminal = self.terminal(server)
            terminal.wait_for("SERVING")
            server.drain()
            terminal.wait_for("the server has ended")
            terminal.wait_for("NO ANSWER")
            terminal.process.send_signal(signal.SIGTERM)
            self.assertEqual(terminal.end(), 0)
            self.assertTrue(terminal.seen.endswith(b"\033[?25h\033[?1049l"))
            self.assertEqual(termios.tcgetattr(terminal.follower), terminal.before)
        nobody = subprocess.run([BINARY, "top", "--server", server.address], capture_output=True, text=True,
                                timeout=30, check=False)
        self.assertEqual(nobody.returncode, 1)
        self.assertIn("cannot reach a server", nobody.stderr)
        self.assertEqual(nobody.stdout, "")

    def test_beside_a_terminal(self):
        with Server(harness.tiny_model(), "--tp", "2", "--pp", "1", ranks=3) as server:
            command = [BINARY, "top", "--server", server.address]
            def heard():  # each rank's first heartbeat
                shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
                return shown if shown.stdout.count(" idle ") == 2 else None
            once = harness.wait_until(heard, 10, "both ranks are heard")
            self.assertNotIn("\033", once.stdout)
            self.assertRegex(once.stdout, r"trireme top +127.0.0.1:\d+ +SERVING\n")
            self.assertRegex(once.stdout, r"\n +2 0/0 +serving +\S+ +\S+ idle ")
            self.assertTrue(all(len(line) <= 80 for line in once.stdout.splitlines()), once.stdout)
            one = subprocess.run([*command, "--json", "--once"], capture_output=True, text=True, timeout=30,
                                 check=True)
            told = json.loads(one.stdout)
            self.assertEqual([rank["state"] for rank in told["health"]["ranks"]], ["serving"] * 2)
            self.assertEqual(told["load"]["running"], 0)
            with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True) as lines:
                self.assertTrue(json.loads(lines.stdout.readline())["health"]["serving"])
                os.kill(server.ranks()[1], signal.SIGSTOP)
                self.assertFalse(json.loads(lines.stdout.readline())["health"]["serving"])
                os.kill(server.ranks()[1], signal.SIGCONT)
                self.assertTrue(json.loads(lines.stdout.readline())["health"]["serving"])
                server.drain()
                # What it was told last, and then its end.
                for line in lines.stdout:
                    self.assertFalse(json.loads(line)["health"]["serving"])
                self.assertEqual(lines.wait(10), 1)
                self.assertIn("trireme: ", lines.stderr.read())


if __name__ == "__main__":
    harness.main(limit_s=120)

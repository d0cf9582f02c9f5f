# SPDX-License-Identifier: MIT
"""A running nbd_test_server: the NBD server over disks in memory."""
import os
import queue
import signal
import subprocess
import threading

from lib import run

PROGRAM = os.path.join(os.environ.get("BYRE_BUILD", os.path.join(os.path.dirname(__file__), "../../build")), "tests/nbd/nbd_test_server")


class MemServer:
    def __init__(self, folder, *options):
        self.folder = str(folder)
        self.socket = os.path.join(self.folder, "s")
        args = [PROGRAM, "--unix", self.socket, *map(str, options)]
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.tcp, self.backend = queue.Queue(), None, None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("ready")

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)

    def wait_for(self, start, timeout=30):
        """The next line that begins like that."""
        seen = []
        while True:
            line = self.lines.get(timeout=timeout)
            if line is None:
                raise run.Failed(f"the test server ended ({self.process.wait()}): {seen}")
            seen.append(line)
            if line.startswith("listening tcp:"):
                host, port = line[len("listening tcp:"):].rsplit(":", 1)
                self.tcp = (host, int(port))
            if line.startswith("ready"):
                self.backend = line.split()[1]
            if line.startswith(start):
                return line

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def command(self, text):
        """remove NAME, force NAME: the result code"""
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return int(self.wait_for("removed").rsplit(" ", 1)[1])

    def stop(self, timeout=30):
        """Orderly; returns how many times disk0 was flushed."""
        self.process.send_signal(signal.SIGTERM)
        line = self.wait_for("stopped", timeout)
        assert self.process.wait(timeout) == 0
        return int(line.split()[1])

    def alive(self):
        return self.process.poll() is None

    def rss_kib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return next(int(x.split()[1]) for x in f if x.startswith("VmRSS"))

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self):
        if self.alive():
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()

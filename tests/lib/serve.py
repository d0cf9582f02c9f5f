# SPDX-License-Identifier: MIT
"""A running `byre serve`: started on a unix socket in the test's folder, waited for, stopped, killed."""
import os
import re
import signal
import subprocess
import threading
import time

from lib import run

READY_WITHIN = 30.0


class Server:
    """byre serve IMAGE --nbd ... --control ... OPTIONS. `uri` and `control` are what it printed once it was ready.

    folder: where the sockets are; a second server in the folder of a killed one finds what that one left there.
    """

    def __init__(self, image, *options, workdir, nbd=None, env=None, folder=None):
        self.folder = folder or os.path.join(workdir, f"serve-{time.monotonic_ns()}")
        os.makedirs(self.folder, exist_ok=True)
        if len(self.folder) > 90:               # a unix socket path has room for 107 bytes
            self.short = os.path.join("/tmp", f"byre-{os.getpid()}-{time.monotonic_ns()}")
            os.symlink(self.folder, self.short)
        else:
            self.short = self.folder
        self.socket = os.path.join(self.short, "nbd")
        self.control = os.path.join(self.short, "control")
        self.args = [run.BYRE, "serve", os.fspath(image), "--nbd", nbd or f"unix:{self.socket}", "--control", self.control,
                     *map(str, options)]
        self.lines, self.uri = [], None
        self._ready = threading.Event()
        self.process = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, errors="replace", env={**os.environ, **(env or {})})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            found = re.match(r"nbd: (nbds?(?:\+unix)?://\S+)", line)         # the disk itself may have such a name
            if found and self.uri is None:
                self.uri = found.group(1)
                self._ready.set()
        self._ready.set()

    @property
    def output(self):
        return "\n".join(self.lines)

    def wait_ready(self, timeout=READY_WITHIN):
        self._ready.wait(timeout)
        if self.uri is None:
            self.kill()
            raise run.Failed(f"$ {' '.join(self.args)}\ndid not print an NBD URI\n{self.output}")
        return self

    def stop(self, timeout=30.0, signal_number=signal.SIGTERM):
        """Asks for a clean end; returns the exit code."""
        self.process.send_signal(signal_number)
        return self.wait(timeout)

    def wait(self, timeout=30.0):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise run.Failed(f"$ {' '.join(self.args)}\ndid not end within {timeout} s\n{self.output}") from None
        self._reader.join(5)
        return code

    def kill(self):
        """kill -9, as a power cut for the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        self._reader.join(5)
        if self.short != self.folder and os.path.islink(self.short):
            os.unlink(self.short)

    def qmp(self, command, **arguments):
        """One control command through `byre ctl`; returns its JSON answer."""
        import json
        return run.byre("ctl", self.control, json.dumps({"execute": command, "arguments": arguments})).json

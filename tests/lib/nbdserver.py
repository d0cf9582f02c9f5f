# SPDX-License-Identifier: MIT
"""Other programs as NBD servers: nbdkit and qemu-nbd on a unix socket, started, killed and started again."""
import contextlib
import os
import signal
import subprocess
import tempfile
import time

from lib import peers

READY_WITHIN = 20.0


def stand_still(pid):
    """Stops a process, and returns when each of its threads stands: the signal alone lets others run on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + READY_WITHIN
    while any(state(pid, thread) != "T" for thread in os.listdir(f"/proc/{pid}/task")):
        assert time.monotonic() < end, "it runs on"
        time.sleep(0.001)


def state(pid, thread):
    with open(f"/proc/{pid}/task/{thread}/stat") as f:
        return f.read().rpartition(")")[2].split()[0]


class NbdServer:
    """A server program on a socket of its own. `uri` names its export; start and kill may be called again and again."""

    def __init__(self, command, export="", folder=None):
        self.folder = folder or tempfile.mkdtemp(prefix="nbd-", dir="/tmp")      # the path of a socket has room for 107 bytes
        self.own_folder = folder is None
        self.socket = os.path.join(self.folder, "s")
        self.log = os.path.join(self.folder, "log")
        self.command, self.export, self.process = command, export, None

    @property
    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket}"

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(a) for a in self.command(self.socket)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + READY_WITHIN
        while not self.listens():
            assert self.process.poll() is None and time.monotonic() < end, open(self.log).read()
            time.sleep(0.02)
        return self

    def listens(self):
        """A look that costs no connection: the socket is in the list of those that listen."""
        with open("/proc/net/unix") as f:
            return any(line.rstrip().endswith(" " + self.socket) and line.split()[3] == "00010000" for line in f)

    def kill(self):
        """As a power cut would end it."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def close(self):
        self.kill()
        if self.own_folder and os.path.isdir(self.folder):
            for name in os.listdir(self.folder):
                os.unlink(os.path.join(self.folder, name))
            os.rmdir(self.folder)


def nbdkit(*args, export=""):
    """nbdkit with these arguments (a plugin, its options, filters)."""
    program = peers.need("nbdkit")
    return NbdServer(lambda sock: [program, "-f", "-U", sock, *args], export)


def qemu_nbd(*args, export=""):
    program = peers.need("qemu-nbd")
    return NbdServer(lambda sock: [program, "--persistent", "-k", sock, *(["-x", export] if export else []), *args], export)



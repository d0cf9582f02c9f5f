# SPDX-License-Identifier: MIT
"""Daemons, ours and the peer's, started with the same words and asked by the same client."""
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from lib import nbdserver, peers, run, wait

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from qmp_client import Qmp  # noqa: E402


SANITIZED = pathlib.Path(os.environ.get("BYRE_BUILD", "")).name.endswith(("-asan", "-tsan"))


class Daemon:
    """A server in its folder; `control` is its control socket if it was given monitor=True."""

    def __init__(self, program, words, folder, monitor, env=None):
        self.folder, self.control = folder, os.path.join(folder, "c.sock")
        extra = ["--chardev", "socket,id=c,path=c.sock,server=on,wait=off", "--monitor", "chardev=c"] if monitor else []
        self.args = [*program, *map(str, words), *extra]
        self.process = subprocess.Popen(self.args, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        env={**os.environ, **(env or {})})
        if monitor:
            self.wait_for(self.control)

    def wait_for(self, path, timeout=60):
        """The file is there; at a socket somebody listens."""
        end, full = time.monotonic() + timeout, os.path.join(self.folder, path)
        while not os.path.exists(full) or (stat.S_ISSOCK(os.stat(full).st_mode) and not wait.listens(self.process, full)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise run.Failed(f"$ {' '.join(self.args)}\n{path} did not appear\n{self.stop()[1]}")
            time.sleep(0.02)

    def qmp(self, **kwargs):
        return Qmp(self.control, **kwargs)

    def stop(self, number=signal.SIGTERM, timeout=60):
        """Exit code and output."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out = self.process.communicate(timeout=timeout)[0]
        return self.process.returncode, out

    def wait(self, timeout=60):
        out = self.process.communicate(timeout=timeout)[0]
        return self.process.returncode, out

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def leave(self):
        """Under a sanitizer ours ends by itself, so that it tells what it has found: what is left over is looked at then."""
        if not SANITIZED or self.args[0] != run.BYRE or self.process.stdout.closed:
            return self.close()
        code, out = self.stop()
        if code not in (0, -signal.SIGKILL, -signal.SIGTERM) or "Sanitizer" in out:
            raise run.Failed(f"$ {' '.join(self.args)}\nexit code {code}\n{out}")


PROGRAMS = {"daemon": ([run.BYRE, "daemon"], "qemu-storage-daemon"), "nbd": ([run.BYRE, "nbd"], "qemu-nbd")}


@pytest.fixture
def start(tmp_path):
    """start("daemon", word..., peer=False, monitor=True): FOLDER in a word is where it runs, with links to the files of the test."""
    started = []

    def start_one(what, *words, peer=False, monitor=None, env=None):
        ours, theirs = PROGRAMS[what]
        program = [peers.need(theirs)] if peer else ours
        folder = tmp_path / f"{'peer' if peer else 'byre'}{len(started)}"
        folder.mkdir()
        for f in tmp_path.iterdir():
            if f.is_file():
                os.symlink(f, folder / f.name)
        words = [str(w).replace("FOLDER", str(folder)) for w in words]
        started.append(Daemon(program, words, str(folder), what == "daemon" if monitor is None else monitor, env))
        return started[-1]

    yield start_one
    failed = []
    for d in started:
        try:
            d.leave()
        except (run.Failed, subprocess.TimeoutExpired) as e:
            failed.append(str(e))
            d.process.kill()
    assert not failed, "\n".join(failed)


@pytest.fixture
def still():
    """A server that can be made to stand still."""
    peers.need("nbdkit")
    server = nbdserver.nbdkit("memory", "8M").start()
    yield server
    os.kill(server.process.pid, signal.SIGCONT)
    server.close()


@pytest.fixture
def disk(tmp_path):
    """8 MiB of qcow2, its first 64 KiB written."""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", path, "8M")
    run.qemu_io(path, "write -P 0x11 0 64k")
    return path

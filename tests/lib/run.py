# SPDX-License-Identifier: MIT
"""Runs programs: always with a time limit, always with the output at hand when something goes wrong."""
import json
import os
import pathlib
import socket
import subprocess

from lib import peers

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BYRE = os.environ.get("BYRE") or str(TOP / "build" / "byre")
TIMEOUT = 60.0


class Failed(AssertionError):
    """A program ended otherwise than the test expected; the text holds command, code and output."""


class Done:
    def __init__(self, args, code, out, err):
        self.args, self.code, self.out, self.err = args, code, out, err

    @property
    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return f"$ {' '.join(map(str, self.args))}\nexit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run(*args, code=0, timeout=TIMEOUT, stdin=None, cwd=None, env=None, binary=False):
    """Runs a program. code: the exit code it must have, a collection of them, or None for any. Returns Done."""
    args = [os.fspath(a) if hasattr(a, "__fspath__") else str(a) for a in args]
    text = {} if binary else {"text": True, "errors": "replace"}
    try:
        done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, input=stdin, cwd=cwd,
                              stdin=subprocess.DEVNULL if stdin is None else None,
                              env={**os.environ, **env} if env else None, timeout=timeout, **text)
    except subprocess.TimeoutExpired as e:
        raise Failed(f"$ {' '.join(args)}\nstill running after {timeout} s\n{e.stdout}\n{e.stderr}") from None
    result = Done(args, done.returncode, done.stdout, done.stderr)
    expected = (code,) if isinstance(code, int) else code
    if expected is not None and result.code not in expected:
        raise Failed(f"expected exit code {code}\n{result}")
    return result


def byre(*args, **kwargs):
    return run(BYRE, *args, **kwargs)


def qemu_img(*args, **kwargs):
    """The peer measures its processor when it makes a LUKS header, and gives up on a busy machine: then it is asked again."""
    for _ in range(9):
        try:
            return run(peers.need("qemu-img"), *args, **kwargs)
        except Failed as e:
            if "Unable to get accurate CPU usage" not in str(e):
                raise
    return run(peers.need("qemu-img"), *args, **kwargs)


def qemu_io(image, *commands, fmt="qcow2", options=(), **kwargs):
    """Runs qemu-io commands on an image. A failed command counts: qemu-io's own exit code does not tell."""
    args = [peers.need("qemu-io"), "-f", fmt, *options]
    for command in commands:
        args += ["-c", command]
    done = run(*args, image, **kwargs)
    for line in done.out.splitlines():
        if "failed" in line or "Pattern verification" in line:
            raise Failed(f"{line}\n{done}")
    return done


def free_port():
    """A TCP port that was free a moment ago on the loopback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def loop_device(path, sector_size=512):
    """Attaches a file as a loop device; returns (device, function that detaches it). The test is marked serial."""
    peers.need_loop()
    device = run("losetup", "--find", "--show", "--sector-size", str(sector_size), path).out.strip()
    return device, lambda: run("losetup", "--detach", device)

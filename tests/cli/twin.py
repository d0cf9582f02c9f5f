# SPDX-License-Identifier: MIT
"""The same command line for byre and for the peer, each in a folder of its own, and what may be compared of the two."""
import os
import shutil
import subprocess

from lib import peers, run


class Twin:
    """Two folders with the same content: `ours` for byre, `theirs` for the peer."""

    def __init__(self, folder):
        self.ours, self.theirs = os.path.join(folder, "ours"), os.path.join(folder, "theirs")
        os.makedirs(self.ours)
        os.makedirs(self.theirs)

    def give(self, *commands):
        """Runs qemu-img/qemu-io commands (lists of words) in `theirs`; gives `ours` a copy of what came out."""
        for command in commands:
            subprocess.run([peers.need(command[0]), *map(str, command[1:])], cwd=self.theirs, check=True,
                           stdout=subprocess.DEVNULL)
        self.copy()

    def copy(self):
        shutil.rmtree(self.ours)
        run.run("cp", "-a", "--sparse=auto", self.theirs, self.ours)

    def share(self, *commands):
        """As give, but both look at the same files: for commands that only read, where disk usage counts too."""
        self.give(*commands)
        self.ours = self.theirs

    def img(self, *words, env=None):
        """(byre WORDS, qemu-img WORDS)."""
        return (run.run(run.BYRE, *words, code=None, cwd=self.ours, env=env),
                run.run(peers.need("qemu-img"), *words, code=None, cwd=self.theirs, env=env))

    def io(self, *words):
        return (run.run(run.BYRE, "io", *words, code=None, cwd=self.ours),
                run.run(peers.need("qemu-io"), *words, code=None, cwd=self.theirs))

    def same_code(self, *words):
        ours, theirs = self.img(*words)
        assert ours.code == theirs.code, f"{ours}\n=== the peer:\n{theirs}"
        return ours, theirs

    def same_output(self, *words):
        ours, theirs = self.same_code(*words)
        assert ours.out == theirs.out, f"{ours}\n=== the peer:\n{theirs}"
        return ours, theirs

    def same_json(self, *words, drop=()):
        ours, theirs = self.same_code(*words)
        assert strip(ours.json, drop) == strip(theirs.json, drop), f"{ours}\n=== the peer:\n{theirs}"
        return ours, theirs


def strip(value, drop):
    """JSON without the members named in `drop`, at any depth."""
    if isinstance(value, dict):
        return {k: strip(v, drop) for k, v in value.items() if k not in drop}
    if isinstance(value, list):
        return [strip(v, drop) for v in value]
    return value


class Holder:
    """qemu-io that holds an image open for writing while the block runs."""

    def __init__(self, image, *options):
        self.args = [peers.need("qemu-io"), *options, str(image)]

    def __enter__(self):
        self.process = subprocess.Popen(self.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdin.write("length\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert "iB" in line or "bytes" in line, line
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

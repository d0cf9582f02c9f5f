# SPDX-License-Identifier: MIT
"""A PC with one virtio disk that lies on an NBD server, and the line over which its guest talks (init.sh)."""
import os
import queue
import re
import subprocess
import threading
import time

from lib import peers

BOOT_WITHIN = 150.0


class Lost(AssertionError):
    """The guest failed, ended, or said nothing for too long."""


class Machine:
    def __init__(self, uri, accel):
        self.accel, self.lines, self.said, self.rounds, self.at = accel, [], queue.Queue(), 0, "starting"
        self.round_times = []
        command = [peers.need("qemu-system-x86_64"), "-accel", accel, "-cpu", "max", "-m", "256", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
                   "-no-reboot", "-serial", "stdio", "-drive", f"if=none,id=d,format=raw,cache=none,discard=unmap,detect-zeroes=unmap,file={uri}",
                   "-device", "virtio-blk-pci,drive=d,bootindex=0"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            self.lines.append(line)
            found = re.search(r"@guest (.*)", line)
            if found:
                words = found.group(1).split()
                if words[0] == "round":
                    self.rounds = int(words[1]) + 1
                    self.round_times.append(time.monotonic())
                self.said.put(words)
        self.said.put(None)

    def lost(self, why):
        tail = "\n".join(line for line in self.lines if not re.search("@guest round", line))
        return Lost(f"{why}\nit stood at: {self.at}; rounds of the guest: {self.rounds}; {self.accel}; exit code {self.process.poll()}\n"
                    f"--- the end of its console\n{tail[-4000:]}")

    def wait(self, word, timeout):
        """Until the guest says a line that begins with this word; returns its words."""
        end = time.monotonic() + timeout
        while True:
            try:
                words = self.said.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise self.lost(f"the guest did not say '{word}' within {timeout:g} s") from None
            if words is None:
                raise self.lost(f"the machine has ended, and the guest had not said '{word}'")
            if words[0] == "failed":
                self.process.wait(20)
                raise self.lost(f"the guest says: {' '.join(words[1:])}")
            if words[0] == word:
                return words[1:]
            self.at = f"the guest's '{' '.join(words)}'"

    def advance(self, rounds, timeout=60.0):
        """Until it has done so many more rounds: what lies in between happened under its load."""
        want, end = self.rounds + rounds, time.monotonic() + timeout
        while self.rounds < want:
            left = end - time.monotonic()
            if left <= 0:
                raise self.lost(f"the guest did not do {rounds} rounds within {timeout:g} s")
            self.wait("round", left)

    def stop(self, timeout):
        """Tells it to end; returns ({name: checksum}, rounds)."""
        self.at = "told to stop"
        self.process.stdin.write(b"stop\n")
        self.process.stdin.flush()
        self.wait("stopping", timeout)
        assert self.wait("fsck", timeout) == ["0"]
        sums = {}
        while True:
            words = self.said.get(timeout=timeout)
            if words is None:
                raise self.lost("the machine ended in the middle of the checksums")
            if words[0] == "sum":
                sums[words[1]] = words[2]
            if words[0] == "done":
                break
        told = dict(w.split("=") for w in words[1:])
        assert int(told["right"]) == len(sums), self.lost("checksums are missing")
        code = self.process.wait(30)
        assert code == 0, self.lost("the machine did not end well")
        bad = [line for line in self.lines if re.search(r"I/O error|EXT4-fs (error|warning)|Oops|BUG:|hung_task|blocked for more", line)]
        assert not bad, self.lost(f"the guest's kernel complains: {bad[0]}")
        return sums, int(told["rounds"])

    def longest_gap(self, since):
        """The longest time between two rounds from then on."""
        times = [t for t in self.round_times if t >= since]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.reader.join(5)


def boot(uri):
    """A machine whose guest is there."""
    machine = Machine(uri, os.environ.get("BYRE_GUEST_ACCEL", "tcg"))
    try:
        machine.wait("booted", BOOT_WITHIN)
    except Lost:
        machine.close()
        raise
    return machine

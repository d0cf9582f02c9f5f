# SPDX-License-Identifier: MIT
"""Waiting for what is to happen. Each bound is far beyond what a machine that is ten times slower needs: it says that nothing will come any more."""
import contextlib
import os
import select
import signal
import time

LONG = 30.0
LISTENS = "00010000"                         # the flags of such a socket in /proc/net/unix


def until(what, why="it does not come about", within=LONG):
    """Asks again and again until the answer is true; returns it. why: what to say when time is up, or a function that says it."""
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why() if callable(why) else why
        time.sleep(0.01)
    return found


def shrinks_below(path, blocks):
    """Space is given back behind the request, or the job, that freed it: waits until the file takes less than that many blocks."""
    until(lambda: os.stat(path).st_blocks < blocks, lambda: f"{path} takes {os.stat(path).st_blocks} blocks, not less than {blocks}")


def catches(process, *signals):
    """A signal that comes before a program has said what it does about it ends the program: waits until it has, for each of these."""
    def caught():
        assert process.poll() is None, f"{process.args} has ended with {process.returncode}"
        with open(f"/proc/{process.pid}/status", encoding="ascii") as f:
            mask = next(int(line.split()[1], 16) for line in f if line.startswith("SigCgt"))
        return all(mask >> (number - 1) & 1 for number in signals)
    until(caught, f"{process.args} does not catch {[signal.Signals(n).name for n in signals]}")


def listens(process, path):
    """Between the file of a socket and somebody who listens there is a moment: does this process, or the only child of it? A look that costs no connection."""
    own = set()
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as f:
        pids = [process.pid, *map(int, f.read().split())]
    for pid in pids:
        with contextlib.suppress(OSError):                  # it may be about to end
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    own.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        rows = [line.split(maxsplit=7) for line in f]
    return any(len(r) == 8 and r[3] == LISTENS and f"socket:[{r[6]}]" in own and os.path.basename(r[7].rstrip()) == os.path.basename(path) for r in rows)


def readable(stream, within=LONG):
    """Is there something to read, at the latest when this time is over?"""
    return bool(select.select([stream], [], [], within)[0])

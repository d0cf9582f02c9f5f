# SPDX-License-Identifier: MIT
"""Dirty bitmaps as others see them: through qemu-nbd -B, and in `info`."""
import contextlib
import os
import subprocess
import time

from lib import peers, run


def dirty_of(handle, name, size):
    """Dirty ranges [(start, end)] that an NBD server tells, merged. The context was added before connecting."""
    ranges, at, context = [], 0, f"qemu:dirty-bitmap:{name}"
    while at < size:
        got = []
        handle.block_status(min(size - at, 1 << 30), at, lambda ctx, off, entries, err: got.extend(entries) if ctx == context else None)
        assert got, "no answer for the context"
        for length, flags in zip(got[::2], got[1::2]):
            if flags & 1:
                if ranges and ranges[-1][1] == at:
                    ranges[-1] = (ranges[-1][0], at + length)
                else:
                    ranges.append((at, at + length))
            at += length
    return [(a, min(b, size)) for a, b in ranges if a < size]


@contextlib.contextmanager
def qemu_nbd(image, name, folder):
    """The peer serves one bitmap of an image, read-only."""
    nbd = peers.need_module("nbd")
    sock = os.path.join(folder, "bitmaps.sock")
    server = subprocess.Popen([peers.need("qemu-nbd"), "-r", "-t", "-f", "qcow2", "-B", name, "-k", sock, os.fspath(image)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    handle = nbd.NBD()
    try:
        handle.add_meta_context(f"qemu:dirty-bitmap:{name}")
        for left in reversed(range(500)):
            if server.poll() is not None:
                raise AssertionError(server.stdout.read().decode())
            try:
                handle.connect_unix(sock)
                break
            except nbd.Error:                              # not there yet, or not listening yet
                if not left:
                    raise
                handle = nbd.NBD()
                handle.add_meta_context(f"qemu:dirty-bitmap:{name}")
                time.sleep(0.02)
        yield handle
    finally:
        with contextlib.suppress(nbd.Error):
            handle.shutdown()
        server.terminate()
        try:
            server.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(sock)


def peer_map(image, name, folder):
    """Dirty ranges of a bitmap, as the peer reads them."""
    with qemu_nbd(image, name, folder) as handle:
        assert handle.can_meta_context(f"qemu:dirty-bitmap:{name}")
        return dirty_of(handle, name, handle.get_size())


def granules(ranges, granularity, size):
    """Byte ranges to merged ranges of whole granules, cut at the size."""
    marked = sorted({g for off, length in ranges if length for g in range(off // granularity, (off + length - 1) // granularity + 1)})
    out = []
    for g in marked:
        a, b = g * granularity, min((g + 1) * granularity, size)
        if a >= size:
            continue
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


def listed(image, tool=None):
    """[(name, granularity, flags)] of `info`."""
    info = (tool or run.byre)("info", "--output=json", image).json
    return [(b["name"], b["granularity"], sorted(b["flags"])) for b in info["format-specific"]["data"].get("bitmaps", [])]

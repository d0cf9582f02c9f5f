# SPDX-License-Identifier: MIT
"""What every pytest file under tests/ has at hand: the helpers of tests/lib (`from lib.images import ...`), the
independent reader of tools/ref (`import qcow2ref`), and the fixtures below."""
import os
import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parent
for folder in (TESTS, TESTS.parent / "tools" / "ref"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import pytest  # noqa: E402

from lib import peers, serve  # noqa: E402

MIB = 1 << 20


def pytest_configure():
    """With CI set pytest prints the whole difference of two disks, which takes it minutes; whether this is CI is known by now (peers.IN_CI)."""
    assert isinstance(peers.IN_CI, bool)
    os.environ.pop("CI", None)
    os.environ.pop("BUILD_NUMBER", None)


def pytest_assertrepr_compare(op, left, right):
    """Of contents of disks: which sectors differ, not all their bytes."""
    if op != "==" or not isinstance(left, (bytes, bytearray)) or not isinstance(right, (bytes, bytearray)) or max(len(left), len(right)) < 4096:
        return None
    ranges = []
    for at in range(0, max(len(left), len(right)), 512):
        if left[at:at + 512] != right[at:at + 512]:
            if ranges and ranges[-1][1] == at:
                ranges[-1][1] = at + 512
            else:
                ranges.append([at, at + 512])
    shown = [f"[{a}, {b}): {left[a:a + 16].hex()}... == {right[a:a + 16].hex()}..." for a, b in ranges[:8]]
    return [f"{len(left)} bytes == {len(right)} bytes, {len(ranges)} ranges differ", *shown]


@pytest.fixture
def byre_serve(tmp_path):
    """byre_serve(image, *options) starts `byre serve` and returns a lib.serve.Server; all are stopped at the end."""
    started = []

    def start(image, *options, **kwargs):
        server = serve.Server(image, *options, workdir=tmp_path, **kwargs)
        started.append(server)
        server.wait_ready()
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture
def noise(tmp_path):
    """24 MiB with data, zeros and holes in it."""
    path = tmp_path / "noise"
    with open(path, "wb") as f:
        for i in range(24):
            if i % 3 == 0:
                f.write(os.urandom(MIB))
            elif i % 3 == 1:
                f.write(bytes(MIB // 2) + os.urandom(MIB // 2))
            else:
                f.seek(MIB, 1)
        f.truncate(24 * MIB)
    return path

# SPDX-License-Identifier: MIT
"""Images whose servers are killed or stopped."""
import kill_disk
import kill_qed
import kill_snap
import pytest
from lib import peers


def made(tmp_path, kind):
    for program in ("qemu-img", "qemu-io", "fio"):
        peers.need(program)
    disks = []

    def make(name):
        disks.append(kind(tmp_path, name))
        return disks[-1]

    yield make
    for disk in disks:
        if disk.server:
            disk.server.close()


@pytest.fixture
def make_disk(tmp_path):
    """make_disk(geometry) makes an image; its servers are ended with the test."""
    yield from made(tmp_path, kill_disk.Disk)


@pytest.fixture
def make_snap_disk(tmp_path):
    """The same, of which snapshots are taken (kill_snap.GEOMETRIES)."""
    yield from made(tmp_path, kill_snap.Disk)


@pytest.fixture
def make_qed_disk(tmp_path):
    """The same, of QED (kill_qed.GEOMETRIES)."""
    yield from made(tmp_path, kill_qed.Disk)

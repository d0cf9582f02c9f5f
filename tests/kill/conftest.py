# SPDX-License-Identifier: MIT
"""Images whose servers are killed or stopped."""
import kill_disk
import pytest
from lib import peers


@pytest.fixture
def make_disk(tmp_path):
    """make_disk(geometry) makes an image; its servers are ended with the test."""
    for program in ("qemu-img", "qemu-io", "fio"):
        peers.need(program)
    disks = []

    def make(name):
        disks.append(kill_disk.Disk(tmp_path, name))
        return disks[-1]

    yield make
    for disk in disks:
        if disk.server:
            disk.server.close()

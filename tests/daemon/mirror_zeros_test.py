# SPDX-License-Identifier: MIT
"""Zeros of a mirror that gets a part of a disk hide what comes to lie below it (FEATURES 9.020, 9.034, J3)."""
import pytest

from backup_test import BOTH, MIB, SIZE, World, same
from lib import run


@BOTH
@pytest.mark.parametrize("copy_mode", ["background", "write-blocking"])
@pytest.mark.parametrize("below,header", [("open", "named"), ("shut", "named"), ("shut", "later")])
def test_zeros_hide_what_comes_to_lie_below(tmp_path, start, peer, below, header, copy_mode):
    """sync=top to an image that is opened with or without its backing file, or gets that later; zeros of before and of meanwhile"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    guest.zero(MIB, 0)
    guest.trim(MIB, SIZE // 2)
    guest.pwrite(bytes(65536), SIZE // 8)
    copy = w.target(node=False)
    lay = ("rebase", "-u", "-b", tmp_path / "low.raw", "-F", "raw", copy)
    if header == "named":
        run.qemu_img(*lay)
    w.add(driver="qcow2", node_name="t", file={"driver": "file", "filename": str(copy)}, discard="unmap", **({} if below == "open" else {"backing": None}))
    w.ok("blockdev-mirror", device="disk", job_id="j", target="t", sync="top", copy_mode=copy_mode)
    w.wait("BLOCK_JOB_READY")
    guest.zero(65536, MIB)
    guest.pwrite(bytes(65536), MIB + 65536)
    now = guest.pread(SIZE, 0)
    w.ok("block-job-cancel", device="j")                # ready: the target is the disk of this moment
    w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    w.gone()
    guest.shutdown()
    w.end()
    if header == "later":
        run.qemu_img(*lay)
    same(w.content(copy), now)

# SPDX-License-Identifier: MIT
"""File systems of their own, for what happens when they are full."""
import contextlib

from lib import peers, run


@contextlib.contextmanager
def tmpfs(folder, size):
    """A file system of that size ("4M") at `folder`, which is made here. Whoever still has a file of it open keeps it until he ends."""
    peers.need_root()
    folder.mkdir()
    run.run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder)
    try:
        yield folder
    finally:
        run.run("umount", "-l", folder)

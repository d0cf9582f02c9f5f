# SPDX-License-Identifier: MIT
"""QED images that are killed, and their need-check mark."""
import kill_disk
from lib import run

NEED_CHECK = 2
PEER_CLUSTERS = 4095                # of files with more the peer's check counts leaks that are not there, also in images of its own
GEOMETRIES = {
    "64k": ({}, [], False, False, "writer"),
    "4k-backing": ({"cluster_size": 4096, "table_size": 2}, ["--threads", "2"], True, False, "writer"),
}


class Disk(kill_disk.Disk):
    fmt = "qed"

    def __init__(self, folder, name):
        super().__init__(folder, name, GEOMETRIES)
        self.area = min(self.area, PEER_CLUSTERS // 3 * self.cluster_size)

    def whole(self):
        """Nothing is lost, nothing is damaged: the peer's check exits with 0."""
        run.qemu_img("check", "-f", "qed", self.image)

    def marked(self):
        with open(self.image, "rb") as f:
            return bool(f.read(24)[16] & NEED_CHECK)

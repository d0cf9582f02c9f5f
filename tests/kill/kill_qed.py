# SPDX-License-Identifier: MIT
"""QED images that are killed, and their need-check mark."""
import kill_disk

NEED_CHECK = 2
GEOMETRIES = {
    "64k": ({}, [], False, False, "writer"),
    "4k-backing": ({"cluster_size": 4096, "table_size": 2}, ["--threads", "2"], True, False, "writer"),
}


class Disk(kill_disk.Disk):
    fmt = "qed"

    def __init__(self, folder, name):
        super().__init__(folder, name, GEOMETRIES)

    def marked(self):
        with open(self.image, "rb") as f:
            return bool(f.read(24)[16] & NEED_CHECK)

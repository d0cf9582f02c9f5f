#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""spdx.py: every source file names the licence within its first lines, and names the right one."""
import os
import re

from common import Lint, files, read

TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([^\s*]+)")
NAMED = (".c", ".h", ".py", ".sh", ".S", ".map", ".mk")


def is_source(root, path):
    if path.endswith(NAMED) or path == "Makefile":
        return True
    with open(os.path.join(root, path), "rb") as f:
        return f.read(2) == b"#!"


def main():
    lint = Lint("spdx", __doc__.split("\n")[0])
    for path in files(lint.root):
        if os.path.islink(os.path.join(lint.root, path)) or not is_source(lint.root, path):
            continue
        head = "\n".join(read(lint.root, path).splitlines()[:5])
        tag = TAG.search(head)
        if not tag:
            lint.finding(path, 1, "no SPDX-License-Identifier in the first five lines")
        elif tag.group(1) != "MIT":
            lint.finding(path, 1, f"licence {tag.group(1)}: byre is MIT")
    lint.finish()


if __name__ == "__main__":
    main()

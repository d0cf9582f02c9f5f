#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""shape.py: source files of src/ open with the comment that says what they are for, and every one is built.

The comment names at least Purpose, Concurrency, Failure and Tests (STYLE.md). With --build DIR (a configured build
folder), a .c or .S file under src/ that no target compiles is a finding: dead code looks alive.
"""
import json
import os
import sys

from common import Lint, files, is_test, read

SECTIONS = ("Purpose", "Concurrency", "Failure", "Tests")


def built(build):
    found = set()
    with open(os.path.join(build, "meson-info/intro-targets.json"), encoding="utf-8") as f:
        for target in json.load(f):
            for group in target["target_sources"]:
                found.update(os.path.realpath(p) for p in group.get("sources", []))
    return found


def main():
    build = None
    if "--build" in sys.argv:
        at = sys.argv.index("--build")
        build = sys.argv[at + 1]
        del sys.argv[at:at + 2]
    lint = Lint("shape", __doc__.split("\n")[0])
    sources = built(build) if build else None
    for path in files(lint.root, ".c", ".S"):
        if not path.startswith("src/"):
            continue
        if sources is not None and os.path.realpath(os.path.join(lint.root, path)) not in sources:
            lint.finding(path, 1, "no target of the build compiles this file")
        if is_test(path) or path.endswith(".S"):
            continue
        text = read(lint.root, path)
        head = text[:text.find("*/")] if text.startswith("/*") else ""
        missing = [s for s in SECTIONS if s not in head]
        if missing and not lint.is_allowed(path):
            lint.finding(path, 1, f"the opening comment lacks {', '.join(missing)}")
    lint.finish()


if __name__ == "__main__":
    main()

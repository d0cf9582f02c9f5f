#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""shape.py: source files of src/ open with the comment that says what they are for, and every one is built.

The comment names at least Purpose, Owns, Invariants, Concurrency, Failure and Tests (STYLE.md; Order where there is something to order). A header
of more than 100 lines that declares what suspends (struct co *) says in its own, under Concurrency, on which loop. With --build DIR (a configured build
folder), a .c or .S file under src/ that no target compiles is a finding: dead code looks alive.
"""
import json
import os
import sys

from common import Lint, bare_c, files, is_test, read

LONG_HEADER = 100
SECTIONS = ("Purpose", "Owns", "Invariants", "Concurrency", "Failure", "Tests")


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
    for path in files(lint.root, ".h"):
        text = read(lint.root, path)
        if path.startswith(("src/", "include/")) and not is_test(path) and text.count("\n") > LONG_HEADER and "struct co *" in bare_c(text) and not lint.is_allowed(path) \
                and "Concurrency" not in text[:text.find("*/")]:
            lint.finding(path, 1, "the opening comment does not say on which loop (Concurrency)")
    lint.finish()


if __name__ == "__main__":
    main()

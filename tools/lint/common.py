# SPDX-License-Identifier: MIT
"""What the lints share: the list of files, C text without comments and strings, the list of exceptions, the verdict.

Every lint takes `--root DIR` (default: the project), prints one line `path:line: text` per finding, and exits 1
when there is one. Exceptions stand in tools/lint/allow.txt, one per line: `rule path[:name] reason ...`.
"""
import argparse
import os
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
SKIP_FOLDERS = {".git", "__pycache__", "demo", ".cache"}


def files(root, *suffixes):
    """Paths relative to root, sorted; build folders and output left out."""
    found = []
    for here, folders, names in os.walk(root):
        rel = os.path.relpath(here, root)
        folders[:] = sorted(f for f in folders if f not in SKIP_FOLDERS and
                            not (rel == "." and f.startswith("build")) and not (rel == "bench" and f == "out"))
        for name in sorted(names):
            if not suffixes or name.endswith(suffixes):
                found.append(os.path.normpath(os.path.join(rel, name)))
    return found


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
        return f.read()


_C_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)


def bare_c(text, keep_includes=False):
    """C text with comments and the inside of literals blanked; line numbers stay true."""
    def blank(match):
        piece = match.group(0)
        if piece[0] in "\"'":
            if keep_includes:
                return piece
            return piece[0] + " " * (len(piece) - 2) + piece[-1]
        return re.sub(r"[^\n]", " ", piece)
    return _C_NOISE.sub(blank, text)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def is_test(path):
    """Tests, their helpers, and small benches: they are not part of libbyre."""
    name = path.rsplit("/", 1)[-1]
    return path.startswith(("tests/", "fuzz/")) or name.endswith(("_test.c", "_test.h")) or name == "test.h" or name.startswith("bench_")


class Lint:
    """Parses the common arguments, holds the exceptions, collects findings."""

    def __init__(self, rule, description):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--root", default=str(TOP))
        self.root = parser.parse_args().root
        self.rule, self.found, self.warned, self.allowed = rule, [], [], {}
        allow = os.path.join(self.root, "tools/lint/allow.txt")
        if os.path.exists(allow):
            self._load_allowed(allow)
        self.unused = set(self.allowed)

    def _load_allowed(self, path):
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                words = line.split("#")[0].split(None, 2)
                if not words:
                    continue
                if len(words) < 3:
                    self.finding("tools/lint/allow.txt", number, "an exception needs a reason")
                elif words[0] == self.rule:
                    self.allowed[words[1]] = words[2]

    def is_allowed(self, *keys):
        for key in keys:
            if key in self.allowed:
                self.unused.discard(key)
                return True
        return False

    def finding(self, path, line, text):
        self.found.append(f"{path}:{line}: {text}")

    def warning(self, path, line, text):
        self.warned.append(f"{path}:{line}: warning: {text}")

    def finish(self):
        for key in sorted(self.unused):
            self.finding("tools/lint/allow.txt", 1, f"exception '{self.rule} {key}' is no longer needed: remove it")
        for line in self.warned + self.found:
            print(line)
        print(f"{self.rule}: {len(self.found)} findings, {len(self.warned)} warnings")
        sys.exit(1 if self.found else 0)

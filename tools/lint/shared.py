#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""shared.py: tests share nothing by its name, so that two of them, or two runs of one, may go on at once.

A file in a folder of the whole machine has a name that is made for this run (mkstemp, mkdtemp, a process id, an f-string); a TCP port is
asked for, not chosen; a C test creates files in a folder of its own (t_path of stor_test.h, or it has changed into one).
"""
import re

from common import Lint, files, is_test, line_of, read

FOLDER = r"/(?:tmp|var/tmp|dev/shm)/"
LITERAL = re.compile(r'(?P<f>[fF]?)"(?P<text>' + FOLDER + r'[^"\n]+)"')
MADE = re.compile(r"X{6}|%[-+ #0-9.*]*[a-z]|\{")
PORT = re.compile(r"""\b(?:bind|connect|create_connection)\(\s*\(\s*["'][^"']*["']\s*,\s*([1-9]\d*)\s*\)|\bhtons\(\s*([1-9]\d*)\s*\)|["'](?:-p|--port)["']\s*,\s*["']?([1-9]\d*)""")
CREATES = re.compile(r'\b(?:open\(\s*"(?!/)[^"]*"[^;]*O_CREAT|fopen\(\s*"(?!/)[^"]*"\s*,\s*"[wa]|creat\(\s*"(?!/)|mkdir\(\s*"(?!/)|mkfifo\(\s*"(?!/))')
OWN_FOLDER = re.compile(r"\bchdir\(")


def main():
    lint = Lint("shared", __doc__.split("\n")[0])
    for path in files(lint.root, ".c", ".py"):
        if not is_test(path) or path.startswith("tests/lint/") or lint.is_allowed(path):
            continue
        text = read(lint.root, path)
        for match in LITERAL.finditer(text):
            if not MADE.search(match["text"]) and match["text"].count("/") - match["text"].startswith("/var") > 1:
                lint.finding(path, line_of(text, match.start()), f"'{match['text']}': a name that every run has")
        for match in PORT.finditer(text):
            port = next(g for g in match.groups() if g)
            if int(port) < 65536:
                lint.finding(path, line_of(text, match.start()), f"port {port}: ask for a free one")
        if path.endswith(".c") and not OWN_FOLDER.search(text):
            for match in CREATES.finditer(text):
                lint.finding(path, line_of(text, match.start()), "creates a file where it was started: use a folder of its own")
    lint.finish()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""words.py: project files say nothing of the place where they were written: its paths, its machines, its helpers.

The patterns are put together from pieces, so that this file does not find itself.
"""
import re

from common import Lint, files, line_of, read

PATTERNS = [
    (r"(?<![\w.])/" + "work/", "a path of one machine"),
    (r"(?<![\w.])/" + r"tmp/(?:brief|bash_)", "a path of one machine"),
    (r"/home/(?!user\b|alice\b|bob\b)\w+/", "a path of one machine"),
    (r"\bbuild-" + r"(?:infra|helper)\b", "a build folder of one machine"),
    (r"\b(?:this|another|previous|next|earlier|later) " + r"session\b|\bsession of the project\b", "how the work was organised"),
    (r"(?i)\b(?:sub-?|helper |coding |ai )" + r"agents?\b|\blanguage " + r"model\b|\b(?:cl" + r"aude|an" + r"thropic|chat" + r"gpt)\b",
     "how the work was organised"),
    (r"(?i)https?://[\w.-]*(?:artifact" + r"ory|nex" + r"us|regis" + r"try|pro" + r"xy|mir" + r"ror)[\w.-]*[:/]", "a host of one place"),
    (r"(?i)\b[\w-]+\.(?:intern" + r"al|cor" + r"p|lo" + r"cal)(?::\d+)?/", "a host of one place"),
    (r"--index-" + r"url|GOPRO" + r"XY|PIP_IND" + r"EX", "a setting of one place"),
]
TEXT = (".c", ".h", ".py", ".sh", ".md", ".txt", ".tsv", ".build", ".json", ".1", ".5", ".7", ".8", ".map", ".ini", ".yml", ".in")
ALSO = ("Makefile", "LAYERS", "LICENSE", "run")


def main():
    lint = Lint("words", __doc__.split("\n")[0])
    rules = [(re.compile(p), why) for p, why in PATTERNS]
    for path in files(lint.root):
        if not path.endswith(TEXT) and path.rsplit("/", 1)[-1] not in ALSO:
            continue
        text = read(lint.root, path)
        for pattern, why in rules:
            for match in pattern.finditer(text):
                if not lint.is_allowed(path):
                    lint.finding(path, line_of(text, match.start()), f"'{match.group(0)}': {why}")
    lint.finish()


if __name__ == "__main__":
    main()

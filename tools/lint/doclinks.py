#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""doclinks.py: links inside Markdown files lead somewhere, and files that they name in backticks exist."""
import os
import re

from common import Lint, files, line_of, read

LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|^\[[^\]\n]+\]:\s*(\S+)", re.M)
NAMED = re.compile(r"`((?:src|include|tests|tools|docs|fuzz|bench|examples|\.ci)/[\w./-]*\w/?)`")
PLACEHOLDER = re.compile(r"(?<![A-Z])(?:NAME|TARGET)(?![A-Z])")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", lambda m: m.group(1) or "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(text):
    seen, found = {}, set()
    for match in re.finditer(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", text), re.M):
        name = slug(match.group(1))
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.add(name if count == 0 else f"{name}-{count}")
    return found


def check_link(lint, path, line, target):
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return
    name, _, anchor = target.partition("#")
    where = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
    if not os.path.exists(os.path.join(lint.root, where)):
        lint.finding(path, line, f"link to '{target}': no such file")
    elif anchor and where.endswith(".md") and anchor not in anchors(read(lint.root, where)):
        lint.finding(path, line, f"link to '{target}': no such heading")


def made_later(root):
    """Paths that documents may name though a clone lacks them: output of runs, and layers that are still empty."""
    layers = read(root, "LAYERS").splitlines() if os.path.exists(os.path.join(root, "LAYERS")) else []
    return tuple(f"src/{line.split()[0]}/" for line in layers if line.split("#")[0].strip()), ("bench/out/",)


def main():
    lint = Lint("doclinks", __doc__.split("\n")[0])
    layers, output = made_later(lint.root)
    for path in files(lint.root, ".md"):
        raw = read(lint.root, path)
        text = FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m.group(0)), raw)
        for match in LINK.finditer(text):
            check_link(lint, path, line_of(text, match.start()), match.group(1) or match.group(2))
        for match in NAMED.finditer(text):
            if match.group(1) in layers or match.group(1).startswith(output) or PLACEHOLDER.search(match.group(1)):
                continue
            if not os.path.exists(os.path.join(lint.root, match.group(1))) and not lint.is_allowed(f"{path}:{match.group(1)}"):
                lint.finding(path, line_of(text, match.start()), f"'{match.group(1)}' does not exist")
    lint.finish()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""coverage.py: runs the tests on a build with counters (build-cov/) and prints lines and branches per folder.

Every file's row goes to build-cov/coverage.tsv. Processes that are killed leave no counts.
"""
import argparse
import collections
import json
import os
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(TOP, "build-cov")


def notes(suffix):
    for here, _, names in os.walk(BUILD):
        for name in names:
            if name.endswith(suffix):
                yield os.path.join(here, name)


def collect():
    """{source: ({line: hit}, {(line, branch): hit})} over all objects."""
    lines, branches = collections.defaultdict(dict), collections.defaultdict(dict)
    for data in notes(".gcda"):
        done = subprocess.run(["gcov", "--json-format", "--stdout", "--branch-probabilities", data], cwd=BUILD,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for text in done.stdout.splitlines():
            for entry in json.loads(text)["files"]:
                path = os.path.relpath(os.path.join(BUILD, entry["file"]), TOP)
                if not path.startswith(("src/", "include/")) or path.endswith("_test.c"):
                    continue
                for line in entry["lines"]:
                    number = line["line_number"]
                    lines[path][number] = lines[path].get(number, False) or line["count"] > 0
                    for i, branch in enumerate(line["branches"]):
                        key = (number, i)
                        branches[path][key] = branches[path].get(key, False) or branch["count"] > 0
    return lines, branches


def percent(hit, total):
    return f"{100 * hit / total:5.1f} %" if total else "      -"


def report(lines, branches):
    folders = collections.defaultdict(lambda: [0, 0, 0, 0])
    with open(os.path.join(BUILD, "coverage.tsv"), "w", encoding="utf-8") as f:
        f.write("file\tlines\tlines hit\tbranches\tbranches hit\n")
        for path in sorted(lines):
            row = [len(lines[path]), sum(lines[path].values()), len(branches[path]), sum(branches[path].values())]
            f.write("\t".join([path, *map(str, row)]) + "\n")
            for name in (os.path.dirname(path), "all"):
                folders[name] = [a + b for a, b in zip(folders[name], row)]
    print(f"{'folder':<24} {'lines':>8} {'hit':>8} {'branches':>9} {'hit':>8}")
    for name in sorted(folders, key=lambda n: (n == "all", n)):
        total, hit, b_total, b_hit = folders[name]
        print(f"{name:<24} {total:>8} {percent(hit, total):>8} {b_total:>9} {percent(b_hit, b_total):>8}")
    return bool(lines)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", default="")
    parser.add_argument("--test", default="")
    args = parser.parse_args(argv)
    for path in list(notes(".gcda")):
        os.unlink(path)
    code = subprocess.run(["/usr/bin/python3", os.path.join(TOP, "tools/check.py"), "--build", BUILD, "--kind", "cov",
                           "--no-extra-builds", "--suite", args.suite, "--test", args.test]).returncode
    if not report(*collect()):
        print("coverage: nothing was counted", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""census.py: which row of the feature list is done, refused or still to come, and which test shows it.

docs/census.tsv has one line per row: id, status, where it is tested, title; separated by tabs, sorted by id.
  done     works, and the files named test it
  refused  answered with a clear error on purpose, and the files named test that
  later    not yet
Tests quote rows as `FEATURES 1.003` or `FEATURES 1.003, 1.004` (also in comments).

    census.py check                     well formed; files named exist; ids quoted in tests exist        (a test)
    census.py summary                   counts per area
    census.py sync                      adds the files that quote a row to its third column
    census.py set STATUS ID... [--tested FILE]...
"""
import argparse
import collections
import os
import re
import sys

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STATES = ("done", "refused", "later")
ID = r"(?:\d{1,2}|G)\.\d{3}"
QUOTE = re.compile(rf"FEATURES\s+(?:rows?\s+)?({ID}(?:(?:\s*,\s*|\s+and\s+|\s*\.\.\s*){ID})*)")
LOOKED_AT = (".py", ".c", ".h", ".sh")


class Row:
    def __init__(self, line, number):
        parts = line.split("\t")
        if len(parts) != 4:
            raise ValueError(f"docs/census.tsv:{number}: {len(parts)} columns instead of 4")
        self.id, self.status, tested, self.title = parts
        self.tested = [t for t in tested.split(",") if t]
        self.number = number

    def __str__(self):
        return "\t".join([self.id, self.status, ",".join(self.tested), self.title])


def order(row_id):
    area, number = row_id.split(".")
    return (int(area) if area.isdigit() else 99, int(number))


def load(root):
    with open(os.path.join(root, "docs/census.tsv"), encoding="utf-8") as f:
        lines = f.read().splitlines()
    head = [line for line in lines if line.startswith("#")]
    return head, [Row(line, n) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]


def save(root, head, rows):
    with open(os.path.join(root, "docs/census.tsv"), "w", encoding="utf-8") as f:
        f.write("\n".join(head + [str(r) for r in sorted(rows, key=lambda r: order(r.id))]) + "\n")


def is_test(path):
    return path.startswith(("tests/", "fuzz/", "examples/")) or path.endswith(("_test.c", "_test.py"))


def quoted_ids(text):
    """Ids that a text quotes; `1.001..1.004` means all between."""
    found = set()
    for match in QUOTE.finditer(text):
        ids = re.findall(rf"(\.\.)?\s*({ID})", match.group(1))
        last = None
        for dots, row_id in ids:
            if dots and last and last.split(".")[0] == row_id.split(".")[0]:
                area = row_id.split(".")[0]
                found.update(f"{area}.{n:03}" for n in range(order(last)[1], order(row_id)[1]))
            found.add(row_id)
            last = row_id
    return found


def quotes(root):
    """{id: {files that quote it}} over tests and sources."""
    found = collections.defaultdict(set)
    for folder in ("src", "include", "tests", "fuzz", "examples", "tools", "bench"):
        for here, folders, names in os.walk(os.path.join(root, folder)):
            folders[:] = [f for f in folders if f != "__pycache__"]
            for name in names:
                path = os.path.relpath(os.path.join(here, name), root)
                if name.endswith(LOOKED_AT) and path not in ("tools/census.py", "tests/lint/census_test.py"):
                    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
                        for row_id in quoted_ids(f.read()):
                            found[row_id].add(path)
    return found


def check(root):
    """All that is wrong, as lines."""
    try:
        _, rows = load(root)
    except (OSError, ValueError) as e:
        return [str(e)]
    wrong, seen = [], {}
    for row in rows:
        where = f"docs/census.tsv:{row.number}"
        if not re.fullmatch(ID, row.id):
            wrong.append(f"{where}: '{row.id}' is no id")
            continue
        if row.id in seen:
            wrong.append(f"{where}: {row.id} is listed twice")
        seen[row.id] = row
        if row.status not in STATES:
            wrong.append(f"{where}: status '{row.status}' of {row.id}")
        if row.status in ("done", "refused") and not row.tested:
            wrong.append(f"{where}: {row.id} is {row.status} and nothing tests it")
        if not row.title.strip():
            wrong.append(f"{where}: {row.id} has no title")
        for path in row.tested:
            if not os.path.exists(os.path.join(root, path.split("::")[0])):
                wrong.append(f"{where}: {row.id} names {path}, which does not exist")
            elif not is_test(path.split("::")[0]):
                wrong.append(f"{where}: {row.id} names {path}, which is no test")
    if [r.id for r in rows] != [r.id for r in sorted(rows, key=lambda r: order(r.id) if re.fullmatch(ID, r.id) else (0, 0))]:
        wrong.append("docs/census.tsv: not sorted by id")
    for row_id, paths in sorted(quotes(root).items()):
        if row_id not in seen:
            wrong.append(f"{sorted(paths)[0]}: quotes FEATURES {row_id}, which is not in docs/census.tsv")
    return wrong


def summary(root):
    _, rows = load(root)
    areas = collections.defaultdict(collections.Counter)
    for row in rows:
        areas[row.id.split(".")[0]][row.status] += 1
    total = collections.Counter()
    print("area  " + "  ".join(f"{s:>7}" for s in STATES))
    for area in sorted(areas, key=lambda a: int(a) if a.isdigit() else 99):
        total.update(areas[area])
        print(f"{area:>4}  " + "  ".join(f"{areas[area][s]:>7}" for s in STATES))
    print(" all  " + "  ".join(f"{total[s]:>7}" for s in STATES))


def sync(root):
    head, rows = load(root)
    found = quotes(root)
    for row in rows:
        kept = [t for t in row.tested if os.path.exists(os.path.join(root, t.split("::")[0]))]
        known = {t.split("::")[0] for t in kept}
        row.tested = kept + sorted(p for p in found.get(row.id, ()) if is_test(p) and p not in known)
    save(root, head, rows)


def set_status(root, status, ids, tested):
    head, rows = load(root)
    known = {r.id: r for r in rows}
    for row_id in ids:
        if row_id not in known:
            sys.exit(f"census: no row {row_id}")
        known[row_id].status = status
        known[row_id].tested += [t for t in tested if t not in known[row_id].tested]
    save(root, head, rows)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", default=TOP)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("check", "summary", "sync"):
        verbs.add_parser(name)
    setter = verbs.add_parser("set")
    setter.add_argument("status", choices=STATES)
    setter.add_argument("ids", nargs="+")
    setter.add_argument("--tested", action="append", default=[])
    args = parser.parse_args(argv)
    if args.verb == "check":
        wrong = check(args.root)
        print("\n".join(wrong + [f"census: {len(wrong)} findings"]))
        return 1 if wrong else 0
    if args.verb == "summary":
        summary(args.root)
    elif args.verb == "sync":
        sync(args.root)
    else:
        set_status(args.root, args.status, args.ids, args.tested)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""run.py: byre and its peers, side by side, in one run.

Every row runs byre and each peer that is found, interleaved (A B C, B C A, ...), on the same folder, and prints the
median, minimum and maximum of each, and byre's ratio to it (above 1: byre is better). Comparisons are
at the same cache mode and the same durability. bench/README.md says what each row means and what not to conclude.
"""
import argparse
import os
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.dont_write_bytecode = True
sys.path.insert(0, HERE)

import report  # noqa: E402
import rows  # noqa: E402
from harness import Bench, Fail, find_tools, run  # noqa: E402


def on_disk(path):
    """Is the folder on a real disk (not memory)?"""
    return run(["stat", "-f", "-c", "%T", path]).strip() not in ("tmpfs", "ramfs")


def parse(argv, families):
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    env = os.environ.get
    ap.add_argument("--byre", default=os.path.join(ROOT, "build", "byre"))
    ap.add_argument("--measure", default=os.path.join(ROOT, "build", "bench", "measure"), help="the helper that bench/measure.c becomes")
    ap.add_argument("--peer-prefix", default=env("PEER_PREFIX"), help="a second set of peers: PREFIX/bin")
    ap.add_argument("--dir", default=env("BENCH_DIR") or os.path.join(ROOT, "build", "bench-data"), help="where images are made; on a real disk")
    ap.add_argument("--rows", default=env("ROWS") or ",".join(families), help="families of rows, separated by commas")
    ap.add_argument("--only", default=env("ONLY"), help="of those, the rows whose name this regular expression finds")
    ap.add_argument("--runs", type=int, default=int(env("RUNS") or 5))
    ap.add_argument("--budget", type=float, default=float(env("BUDGET") or 0), help="after so many seconds begin no further row; those that are left are named")
    ap.add_argument("--seconds", type=float, default=float(env("FIO_SECONDS") or 4), help="how long a client of a server runs for one figure")
    ap.add_argument("--add", action="store_true", default=bool(env("ADD")), help="keep the rows of the report in --out that are not measured now")
    ap.add_argument("--note", default=env("NOTE"), help="what the report says of the rows of this run")
    ap.add_argument("--out", default=os.path.join(HERE, "out"))
    ap.add_argument("--publish", metavar="FILE", help="put the report that --out holds into this document and end (see docs/performance.md)")
    ap.add_argument("--tiny", action="store_true", help="smallest sizes, any folder: to test the benchmark itself")
    ap.add_argument("--list", action="store_true", help="print the families and end")
    return ap.parse_args(argv)


def prepare(a, families):
    unknown = [r for r in a.rows.split(",") if r not in families]
    if unknown:
        sys.exit("bench: no rows '%s'; there are: %s" % (unknown[0], ", ".join(families)))
    a.dir, a.byre, a.measure = (os.path.abspath(p) for p in (a.dir, a.byre, a.measure))     # servers want whole paths
    os.makedirs(a.dir, exist_ok=True)
    if not a.tiny and not on_disk(a.dir):
        sys.exit("bench: %s is in memory; give a folder on a disk with BENCH_DIR=" % a.dir)
    for need in (a.byre, a.measure):
        if not os.path.exists(need):
            sys.exit("bench: %s is missing; run make all first" % need)
    return Bench(a.dir, find_tools(a.byre, a.peer_prefix), a.runs, a.tiny, a.only, a.budget, a.measure, a.note, a.seconds)


def run_family(b, name, fn):
    """A family whose preparation fails is a failed row; the others go on."""
    b.family = name
    try:
        fn(b)
    except (Fail, OSError) as e:
        print("bench: %s: %s" % (name, e), file=sys.stderr)
        b.rows.append({"family": name, "row": "preparation of " + name, "unit": "", "higher_is_better": False, "results": {"all": {"failed": 1}}})


def main(argv):
    families = rows.load()
    a = parse(argv, families)
    if a.list:
        for name, (_, what) in families.items():
            print("%-22s %s" % (name, what))
        return 0
    if a.publish:
        report.publish(report.read(a.out), families, a.publish)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: told to stop"))
    b = prepare(a, families)
    now = report.machine(b, ROOT)
    begin = time.monotonic()
    try:
        print("; ".join("%s: %s" % kv for kv in now.items()), flush=True)
        for name in a.rows.split(","):
            run_family(b, name, families[name][0])
    finally:                            # who interrupts it keeps what was measured
        failed = leave(a, b, now, families)
    print("%.0f s; report: %s" % (time.monotonic() - begin, os.path.join(a.out, "report.md")))
    if failed:
        print("bench: %d results are missing" % failed, file=sys.stderr)
    return 1 if failed or not b.rows else 0


def leave(a, b, now, families):
    """Writes the report. How many results are missing?"""
    b.rows = [r for r in b.rows if r["results"] or "not_measured" in r]
    for r in b.rows:
        r["commit"] = now["commit"]
    old = report.read(a.out)["rows"] if a.add else []
    report.write({"machine": now, "rows": report.merge(old, b.rows)}, families, a.out)
    return sum("median" not in v for r in b.rows for v in r["results"].values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

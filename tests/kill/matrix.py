# SPDX-License-Identifier: MIT
"""The kill matrix: mirrors, commits, streams, backups and creations, killed at random moments and at their events under write load, and what became of
them, as a table. A case that lost anything has failed, and is no row of it.

    matrix.py [--kills N] [CASE...]       # N: for each case, 50 unless given; cases as pytest's -k takes them
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TESTS = pathlib.Path(__file__).resolve().parent.parent
FILES = ("test_kill_backup.py", "test_kill_create.py", "test_kill_jobs.py", "test_kill_mirror.py")
MOMENTS = (("a random moment", "random"), ("BLOCK_JOB_READY", "ready"), ("BLOCK_JOB_COMPLETED", "completed"), ("BLOCK_JOB_CANCELLED", "cancelled"))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("cases", nargs="*")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="byre-kill-") as folder:
        table = os.path.join(folder, "table")
        words = ["-k", " or ".join(args.cases)] if args.cases else []
        done = subprocess.run(["/usr/bin/python3", "-m", "pytest", "-q", "--basetemp", os.path.join(folder, "t"), *words, *(str(TESTS / "kill" / f) for f in FILES)],
                              env={**os.environ, "KILLS": str(args.kills), "KILL_TABLE": table, "PYTHONDONTWRITEBYTECODE": "1"}, check=False)
        rows = []
        if os.path.exists(table):
            with open(table, encoding="utf-8") as f:
                rows = [json.loads(line) for line in f]
    print(f"{'job':20}" + "".join(f"{short:>11}" for _, short in MOMENTS) + f"{'begun again':>13}{'requests acknowledged':>23}")
    for row in rows:
        print(f"{row['case']:20}" + "".join(f"{row['moments'].get(name, 0):11}" for name, _ in MOMENTS) + f"{row['restarted']:13}{row['acknowledged']:23}")
    print(f"{sum(sum(r['moments'].values()) for r in rows)} kills, {len(rows)} kinds of jobs" + ("" if done.returncode == 0 else "; others failed, see above"))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

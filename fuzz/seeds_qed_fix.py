#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target qed_fix: damage of tests/lib/qed.py, hostile files of tests/cve/seeds_qed.py, and tables in the way of
one another. Usage: seeds_qed_fix.py [FOLDER]. Seeds that are there already stay."""
import pathlib
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests" / "cve"), str(TOP / "tools" / "ref")]
from lib import qed  # noqa: E402
import seeds_qed  # noqa: E402

DAMAGES = ("data_outside", "data_is_l1", "data_is_l2", "data_twice", "leak", "table_twice", "table_is_l1", "table_is_data", "table_half_shared", "need_check_and_twice", "header_two",
           "tail_garbage")
HOSTILE = ("one_table_for_all", "l1_is_its_own_l2", "everything_in_one_cluster", "pointers_near_the_end_of_numbers", "garbage_behind_the_magic", "a_name_that_is_a_recipe")


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else TOP / "fuzz" / "corpus" / "qed_fix")
    target.mkdir(parents=True, exist_ok=True)
    for name in DAMAGES:
        b = qed.Builder()
        qed.DAMAGES[name](b)
        if not (target / name).exists():
            b.write(target / name)
    for name in HOSTILE:
        if not (target / name).exists():
            seeds_qed.SEEDS[name](target / name)
    b = qed.Builder(table_size=4, data=0)                   # a hole before each table: nothing fits
    b.cut(4096 * 21).word(b.l1, 4096 * 6).word(b.l1 + 8, 4096 * 11).word(b.l1 + 16, 4096 * 16).header(size=4 << 20)
    if not (target / "tables_slide").exists():
        b.write(target / "tables_slide")


main()

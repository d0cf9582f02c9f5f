# SPDX-License-Identifier: MIT
"""Other programs as clients: libnbd's tools, qemu-img, qemu-io, fio."""
import json

import pytest
from lib import peers
from lib.run import run

MIB = 1 << 20


def test_nbdinfo(server):
    peers.need("nbdinfo")
    info = json.loads(run("nbdinfo", "--json", server.uri()).out)
    assert info["protocol"] == "newstyle-fixed" and info["structured"]
    x = info["exports"][0]
    assert x["export-size"] == 64 * MIB and x["is_read_only"] is False
    assert all(x[f"can_{what}"] for what in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"))
    assert x["contexts"] == ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:even", "qemu:dirty-bitmap:odd"]
    assert (x["block_size_minimum"], x["block_size_preferred"], x["block_size_maximum"]) == (1, 4096, 32 * MIB)
    listed = json.loads(run("nbdinfo", "--list", "--json", server.uri()).out)
    assert [x["export-name"] for x in listed["exports"]] == ["disk0", "ro", "big", "err", "slow", "block4k"]
    run("nbdinfo", "--is", "read-only", server.uri("ro"))
    run("nbdinfo", "--can", "zero", server.uri("ro"), code=2)
    assert run("nbdinfo", "--size", server.uri("big")).out.strip() == str(1 << 62)


@pytest.mark.parametrize("options", [[], ["--connections=1", "--requests=1"], ["--synchronous"], ["--request-size=4096"],
                                     ["--request-size=33554432"], ["--connections=4", "--requests=64", "--sparse=512"], ["--flush", "--allocated"]],
                         ids=lambda o: "-".join(o).replace("--", "") or "plain")
def test_nbdcopy_there_and_back(start, noise, tmp_path, options):
    peers.need("nbdcopy")
    server = start("--size", 24 * MIB)
    back = tmp_path / "back"
    run("nbdcopy", *options, noise, server.uri())
    run("nbdcopy", *options, server.uri(), back)
    assert back.read_bytes() == noise.read_bytes()


def test_nbdcopy_keeps_holes(start, noise, tmp_path):
    peers.need("nbdcopy", "nbdinfo")
    server = start("--size", 24 * MIB)
    run("nbdcopy", noise, server.uri())
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri()).out)
    assert sum(e["length"] for e in extents) == 24 * MIB
    assert sum(e["length"] for e in extents if e["type"] == 3) >= 8 * MIB


def test_qemu_img_convert_compare_map(start, noise, tmp_path):
    qemu_img = peers.need("qemu-img")
    server = start("--size", 24 * MIB)
    run(qemu_img, "convert", "-n", "-f", "raw", "-O", "raw", noise, server.uri())
    run(qemu_img, "compare", "-f", "raw", "-F", "raw", noise, server.uri())
    back = tmp_path / "back.qcow2"
    run(qemu_img, "convert", "-f", "raw", "-O", "qcow2", server.uri(), back)
    run(qemu_img, "compare", "-f", "raw", "-F", "qcow2", noise, back)
    extents = json.loads(run(qemu_img, "map", "--output=json", "-f", "raw", server.uri()).out)
    assert sum(e["length"] for e in extents) == 24 * MIB and any(e["zero"] for e in extents)


def test_qemu_io(server):
    qemu_io = peers.need("qemu-io")
    commands = ["write -P 0xaa 0 4M", "write -z -u 1M 64k", "write -f -P 0xbb 1234 777", "discard 2M 1M", "flush",
                "read -P 0xaa 0 1k", "read -P 0xbb 1234 777", "read -P 0 1M 64k", "read -P 0 2M 1M", "read -P 0xaa 3M 1M"]
    args = [a for c in commands for a in ("-c", c)]
    done = run(qemu_io, "-f", "raw", *args, server.uri())
    assert "failed" not in done.out + done.err


def test_qemu_io_sees_the_errors(server):
    qemu_io = peers.need("qemu-io")
    done = run(qemu_io, "-f", "raw", "-c", "read 2M 4k", server.uri("err"), code=1)
    assert "Input/output error" in done.out + done.err
    done = run(qemu_io, "-f", "raw", "-c", "write 2M 4k", server.uri("err"), code=1)
    assert "No space left" in done.out + done.err


@pytest.mark.timeout(180)
@pytest.mark.parametrize("jobs", [1, 4])
def test_fio_verifies_what_it_wrote(server, tmp_path, jobs):
    fio = peers.need("fio")
    job = tmp_path / "job.fio"
    parts = "".join(f"[j{i}]\noffset={i * 16}m\nsize=16m\n" for i in range(jobs))
    job.write_text(f"""[global]
ioengine=nbd
uri={server.uri()}
rw=randrw
rwmixwrite=70
bsrange=512-64k
iodepth=64
verify=crc32c
verify_fatal=1
do_verify=1
randrepeat=1
{parts}""")
    done = run(fio, "--output-format=json", "--output", tmp_path / "out", job, timeout=150, cwd=tmp_path)
    result = json.loads((tmp_path / "out").read_text()[(tmp_path / "out").read_text().index("{"):])
    assert len(result["jobs"]) == jobs
    for j in result["jobs"]:
        assert j["error"] == 0 and j["write"]["total_ios"] > 100, str(done)


def test_nbdsh_without_structured_replies(server):
    peers.need("nbdsh")
    script = ("h.set_request_structured_replies(False); h.connect_uri(%r); assert not h.get_structured_replies_negotiated(); "
              "h.pwrite(b'q'*512, 0); assert h.pread(512, 0) == b'q'*512; h.shutdown()" % server.uri())
    run("nbdsh", "-c", script, env={"PATH": "/usr/bin:/bin"})      # the Python that has its module


def test_tcp(start, noise, tmp_path):
    server = start("--tcp", "127.0.0.1:0", "--size", 24 * MIB)
    uri = "nbd://%s:%d" % server.tcp
    back = tmp_path / "back"
    run("nbdcopy", noise, uri)
    run("nbdcopy", uri, back)
    assert back.read_bytes() == noise.read_bytes()

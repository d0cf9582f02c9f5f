# SPDX-License-Identifier: MIT
"""Rewrite, discard, zero and read of the same clusters on four connections at once: no sector ever shows what was never
written there, or what had surely been replaced. Also with subclusters, encryption, compressed clusters, a data file, lazy
refcounts, and while snapshots come and go. A short run in `make check`; `make soak` takes SOAK_SECONDS over all of them.

By hand, a minute of one form:  SOAK_SECONDS=60 pytest tests/stress/test_discard_rewrite.py -k 'long and plain-4k' -s
"""
import os
import struct
import subprocess
import threading
import time

import pytest
import qcow2ref
from cli import qmp_client
from lib import images, run

BUILD = os.environ.get("BYRE_BUILD") or run.TOP / "build"
PROGRAM = os.path.join(BUILD, "tests", "stress", "nbd-stress")
BYTES, CONNECTIONS = 4 << 20, 4
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS") or 60)
SECRET = ["--object", "secret,id=s,data=hunter2"]
# name: (options of create, options of serve, what else)
FORMS = {
    "plain-4k": ({"cluster_size": 4096}, ["--threads", "2"], ""),
    "plain-64k": ({"cluster_size": 65536}, ["--threads", "4"], ""),
    "plain-512": ({"cluster_size": 512}, ["--aio", "threads"], ""),
    "extl2": ({"cluster_size": 65536, "extended_l2": True}, ["--threads", "2"], ""),
    "luks": ({"cluster_size": 16384, "encrypt.format": "luks", "encrypt.key-secret": "s", "encrypt.iter-time": 10}, ["--threads", "2"], "luks"),
    "packed": ({"cluster_size": 16384}, ["--threads", "2"], "packed"),
    "snapshots": ({"cluster_size": 8192}, ["--threads", "2"], "snapshots"),
    "snapshots-extl2": ({"cluster_size": 32768, "extended_l2": True}, ["--threads", "2"], "snapshots"),
    "lazy": ({"cluster_size": 8192, "lazy_refcounts": True}, ["--threads", "2"], ""),
    "no-unref": ({"cluster_size": 8192}, ["--threads", "2"], "no-unref"),
}


def stamped(length, tag):
    return b"".join(struct.pack("<QQ", off, tag) * 32 for off in range(0, length, 512))


def make(folder, form):
    """Returns (image, name to serve, whether it holds tag 1 everywhere)."""
    options, _, kind = FORMS[form]
    image = folder / "disk.qcow2"
    if kind == "packed":
        raw = folder / "first.raw"
        raw.write_bytes(stamped(BYTES, 1))
        run.byre("convert", "-c", "-O", "qcow2", "-o", f"cluster_size={options['cluster_size']}", raw, image)
        assert images.compressed_entries(image)
        return image, image, True
    words = ",".join(f"{k}={images.value(v)}" for k, v in options.items())
    run.byre("create", "-q", *(SECRET if kind == "luks" else []), "-f", "qcow2", "-o", words, image, str(BYTES))
    name = image
    if kind == "luks":
        name = f"driver=qcow2,file.filename={image},encrypt.key-secret=s"
    if kind == "no-unref":
        name = f"driver=qcow2,discard-no-unref=on,file.filename={image}"
    return image, name, False


class Snapper(threading.Thread):
    """Makes a snapshot, and deletes one, again and again until stop() is called."""

    def __init__(self, control):
        super().__init__(daemon=True)
        self.qmp, self.quiet, self.made, self.fault, self.have = qmp_client.Qmp(control), False, 0, None, []
        self.start()

    def run(self):
        try:
            while not self.quiet:
                self.have.append(f"s{self.made}")
                answer = self.qmp.ask("blockdev-snapshot-internal-sync", device="disk0", name=self.have[-1])
                self.made += 1
                if "return" in answer and len(self.have) > 3:
                    answer = self.qmp.ask("blockdev-snapshot-delete-internal-sync", device="disk0", name=self.have.pop(self.made % 3))
                assert "return" in answer, answer
                time.sleep(0.02)
        except BaseException as e:
            self.fault = repr(e)

    def stop(self):
        self.quiet = True
        self.join(30)
        assert self.fault is None, self.fault
        assert self.made, "no snapshot was made"


def assert_stamped(data, what):
    """Every 16 bytes are zero or belong to their sector."""
    for off in range(0, len(data), 512):
        sector = data[off:off + 512]
        if sector.count(0) == 512:
            continue
        places = set(struct.unpack("<64Q", sector)[::2])
        assert places <= {0, off}, f"{what}: the sector at {off:#x} holds bytes of {sorted(places)}"


def stress(byre_serve, folder, form, seconds, seed):
    image, name, held = make(folder, form)
    luks = FORMS[form][2] == "luks"
    how = ["--image-opts"] if not isinstance(name, type(image)) else ["-f", "qcow2"]
    server = byre_serve(name, *how, *FORMS[form][1], *(SECRET if luks else []))
    snapper = Snapper(server.control) if FORMS[form][2] == "snapshots" else None
    final = folder / "final.raw"
    command = [PROGRAM, server.socket, str(seconds), str(seed), str(CONNECTIONS), str(BYTES), str(FORMS[form][0]["cluster_size"]), str(final)]
    done = subprocess.run(command + (["held"] if held else []), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds + 120)
    print(f"{form}, seed {seed}: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout
    if snapper:
        snapper.stop()
        print(f"{snapper.made} snapshots")
    assert server.stop() == 0, server.output
    with qcow2ref.open_image(image, fmt="qcow2", backing=False) as opened:
        report = opened.check()
    assert report.clean, report
    out = folder / "out.raw"
    source = ["--image-opts", f"driver=qcow2,file.filename={image},encrypt.key-secret=s"] if luks else ["-f", "qcow2", image]
    run.qemu_img("check", *(SECRET if luks else []), *source)
    run.qemu_img("convert", *(SECRET if luks else []), *source, "-O", "raw", out)
    assert out.read_bytes() == final.read_bytes(), "the peer reads other bytes"
    for n in snapper.have if snapper else []:
        run.qemu_img("convert", "-f", "qcow2", "-l", f"snapshot.name={n}", "-O", "raw", image, out)
        assert_stamped(out.read_bytes(), f"snapshot {n}")


@pytest.mark.parametrize("form", FORMS)
def test_discard_rewrite(byre_serve, tmp_path, form):
    stress(byre_serve, tmp_path, form, 1.5, 7)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 200)
@pytest.mark.parametrize("form", FORMS)
def test_long(byre_serve, tmp_path, form):
    stress(byre_serve, tmp_path, form, SOAK_SECONDS, int(time.time()))

# SPDX-License-Identifier: MIT
"""A real guest never notices (G.026 to G.034, J1 to J5, FEATURES 8.004, 9.020, 9.042, 9.043): a PC boots Debian's kernel from a disk that `byre daemon` exports over NBD, makes
ext4 on it and writes files with checksums, while the disk is snapshotted, committed, streamed, mirrored, backed up and scrubbed under it.

The guest reads every file again and checks its file system; then the image is judged from outside, by programs of others.
The PC is emulated; BYRE_GUEST_ACCEL=kvm takes the processor's help where that works. `make guest` prints the figures.
"""
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import bootdisk
import vm
from lib import images, peers, run, wait
from story import Story

sys.path.insert(0, str(bootdisk.HERE.parent / "cli"))
from qmp_client import Qmp  # noqa: E402

SIZE = 192 << 20


class Daemon:
    """`byre daemon` with the image exported, and a client of its control socket."""

    def __init__(self, image, folder):
        self.folder, self.log = folder, folder / "daemon.log"
        words = ["--blockdev", f"driver=file,node-name=f,filename={image},discard=unmap", "--blockdev", "driver=qcow2,node-name=disk,file=f,discard=unmap",
                 "--object", "throttle-group,id=g", "--blockdev", "driver=throttle,node-name=door,throttle-group=g,file=disk",
                 "--nbd-server", f"addr.type=unix,addr.path={folder}/n", "--export", "type=nbd,id=e,node-name=door,name=disk,writable=on",
                 "--chardev", f"socket,id=c,path={folder}/c,server=on,wait=off", "--monitor", "chardev=c"]
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen([run.BYRE, "daemon", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        end = time.monotonic() + 20
        while not all(wait.listens(self.process, folder / name) for name in "cn"):
            assert self.process.poll() is None and time.monotonic() < end, f"the daemon does not start: {self.log.read_text()}"
            time.sleep(0.02)
        self.client = Qmp(str(folder / "c"))
        self.uri = f"nbd:unix:{folder}/n:exportname=disk"

    def stop(self):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def running(tmp_path):
    """What is to be ended whatever happens."""
    things = []
    yield things.append
    for thing in reversed(things):
        thing.close()


def judge_outside(image, sums, folder):
    """By the peer's reader, e2fsck and debugfs: the file system is clean and holds these files."""
    images.assert_sound(image)
    raw = folder / "final.raw"
    run.qemu_img("convert", "-O", "raw", image, raw)
    partition = f"{raw}?offset={bootdisk.DATA_AT}"
    checked = run.run("e2fsck", "-f", "-n", partition, code=None)
    assert checked.code == 0, checked
    out = folder / "files"
    out.mkdir()
    run.run("debugfs", "-R", f"rdump / {out}", partition)
    names = {p.name for p in out.iterdir() if p.is_file()}
    assert names == set(sums), names ^ set(sums)
    for name, want in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == want, f"{name} in the final image is not what the guest wrote"


def judge_backup(path):
    """The disk of a moment at which the guest was writing: what a power cut then would have left. The journal makes it whole."""
    with open(path, "rb") as disk, open(f"{path}.part", "wb") as part:
        disk.seek(bootdisk.DATA_AT)
        shutil.copyfileobj(disk, part, 1 << 20)
    mended = run.run("e2fsck", "-p", f"{path}.part", code=None)
    assert mended.code in (0, 1), mended.out + mended.err
    checked = run.run("e2fsck", "-f", "-n", f"{path}.part", code=None)
    assert checked.code == 0, checked.out + checked.err


def tell(machine, version, booted, rounds, sums, story):
    print(f"\nguest: Linux {version} on {machine.accel}, there after {booted:.1f} s; {rounds} rounds, {len(sums)} files right, file system clean")
    print(story.table(), flush=True)


def short_folder(tmp_path):
    """A unix socket path has room for 107 bytes."""
    folder = tmp_path / "g"
    folder.mkdir()
    assert len(os.fspath(folder)) < 95, folder
    return folder


@pytest.mark.timeout(420)
def test_real_guest(tmp_path, running):
    for program in ("qemu-system-x86_64", "qemu-img", "e2fsck", "debugfs"):
        peers.need(program)
    folder = short_folder(tmp_path)
    version = bootdisk.make(tmp_path / "boot.raw", SIZE, tmp_path)
    base = folder / "base.qcow2"
    run.byre("convert", "-O", "qcow2", tmp_path / "boot.raw", base)
    daemon = Daemon(base, folder)
    running(daemon)
    begin = time.monotonic()
    machine = vm.boot(daemon.uri)
    running(machine)
    booted = time.monotonic() - begin
    machine.at = "making a file system"
    machine.wait("mounted", 90)
    machine.advance(60)
    story = Story(daemon.client, machine, os.fspath(folder), "disk", os.fspath(base))
    story.snapshot()                                     # disk <- s1
    story.snapshot()
    story.snapshot()
    story.snapshot()                                     # disk <- s1 <- s2 <- s3 <- s4
    story.commit("s2", "s1")                             # the middle: disk <- s1 <- s3 <- s4
    story.gone("s2")
    story.scrub()
    story.fleece("chain", folder / "n", SIZE)
    story.commit("s3", "disk", drop_source=True)         # disk <- s4
    story.gone("s1", "s3")
    story.snapshot()
    story.snapshot()                                     # disk <- s4 <- s5 <- s6
    story.stream(base_node="disk")                       # disk <- s6
    story.gone("s4", "s5")
    story.active_commit("disk", "base.qcow2")
    story.mirror("copy.qcow2")
    story.fleece("moved", folder / "n", SIZE)
    story.snapshot()
    story.mirror("second.qcow2", copy_mode="write-blocking")
    story.compact()
    story.scrub()
    sums, rounds = machine.stop(120)
    daemon.stop()
    assert len(sums) >= 10 and rounds >= 100
    judge_outside(story.file, sums, tmp_path)
    assert len(story.backups) == 2
    for path in story.backups:
        judge_backup(path)
    tell(machine, version, booted, rounds, sums, story)


def test_what_is_told(tmp_path, running):
    """A disk without a guest: the message says where it stood."""
    folder = short_folder(tmp_path)
    images.create(folder / "empty.qcow2", 1 << 20)
    daemon = Daemon(folder / "empty.qcow2", folder)
    running(daemon)
    machine = vm.Machine(daemon.uri, "tcg")
    running(machine)
    with pytest.raises(vm.Lost) as lost:
        machine.wait("booted", 3)
    assert "did not say 'booted' within 3 s" in str(lost.value) and "it stood at: starting" in str(lost.value)

# SPDX-License-Identifier: MIT
"""A disk that a PC boots from: a boot loader, Debian's kernel and an initramfs in its first partition; the second one is the guest's.

The kernel is the one that tools/deps.sh has unpacked. The initramfs holds a busybox, the modules for a virtio disk, and this machine's programs for ext4.
"""
import gzip
import os
import pathlib
import re
import shutil
import struct
import subprocess

from lib import peers, run

HERE = pathlib.Path(__file__).resolve().parent
MIB = 1 << 20
BOOT_AT, BOOT_SIZE = MIB, 40 * MIB
DATA_AT = BOOT_AT + BOOT_SIZE
MODULES = ("virtio_blk", "virtio_pci")
PROGRAMS = ("mke2fs", "e2fsck")
CONFIG = """default linux
prompt 0
timeout 0
label linux
    kernel vmlinuz
    initrd initrd.gz
    append console=ttyS0,115200 quiet loglevel=4 panic=-1 oops=panic rdinit=/init random.trust_cpu=on mitigations=off
"""


class Cpio:
    """An archive as the kernel unpacks it."""

    def __init__(self):
        self.out, self.number = bytearray(), 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        self.number += 1
        name = name.encode() + b"\0"
        fields = (self.number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self.out += b"070701" + b"".join(b"%08X" % f for f in fields) + name
        self._align()
        self.out += data
        self._align()

    def _align(self):
        self.out += bytes(-len(self.out) % 4)

    def end(self):
        self.add("TRAILER!!!", 0)
        return bytes(self.out)


def find_kernel():
    """(vmlinuz, folder of its modules)"""
    root = peers.need_unpacked("linux-image-cloud-amd64")
    kernel = max(root.glob("boot/vmlinuz-*"))
    version = kernel.name.split("-", 1)[1]
    folders = [root / "lib/modules" / version, root / "usr/lib/modules" / version]
    return kernel, next(f for f in folders if f.is_dir())


def with_dependencies(folder, names):
    """Module files, each after those it needs."""
    files = {}
    for path in folder.rglob("*.ko*"):
        files[path.name.split(".")[0].replace("-", "_")] = path
    order = []

    def data(path):
        assert path.suffix == ".ko", f"{path} is compressed, and nothing here can unpack it"
        return path.read_bytes()

    def visit(name):
        if name in order or name not in files:               # or it is part of the kernel
            return
        depends = re.search(rb"(?:^|\0)depends=([^\0]*)\0", data(files[name]))
        for other in filter(None, depends.group(1).decode().split(",")):
            visit(other.replace("-", "_"))
        order.append(name)

    for name in names:
        visit(name)
    assert names[0] in order, f"{folder} has no {names[0]}"
    return [(files[n].name, data(files[n])) for n in order]


def libraries(program):
    """What a program is linked with, and the loader."""
    out = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    return sorted(set(re.findall(r"(/\S+) \(0x", out)))


def initramfs(modules_folder):
    archive, folders = Cpio(), set()

    def add(name, mode, data=b"", device=(0, 0)):
        parts = name.split("/")[:-1]
        for i in range(len(parts)):
            folder = "/".join(parts[:i + 1])
            if folder not in folders:
                folders.add(folder)
                archive.add(folder, 0o040755)
        archive.add(name, mode, data, device)

    add("dev/console", 0o020600, device=(5, 1))
    add("init", 0o100755, (HERE / "init.sh").read_bytes())
    add("bin/busybox", 0o100755, pathlib.Path(peers.need("busybox")).read_bytes())
    needed = set()
    for name in PROGRAMS:
        path = shutil.which(name, path=os.environ["PATH"] + ":/sbin:/usr/sbin") or peers.missing(name)
        add(f"sbin/{name}", 0o100755, pathlib.Path(path).read_bytes())
        needed.update(libraries(path))
    for path in sorted(needed):
        add(path.lstrip("/"), 0o100755, pathlib.Path(path).read_bytes())
    modules = with_dependencies(modules_folder, MODULES)
    for name, data in modules:
        add(f"modules/{name}", 0o100644, data)
    add("modules/order", 0o100644, "".join(f"{name}\n" for name, _ in modules).encode())
    return gzip.compress(archive.end(), 1)


def partition_table(size):
    """Two entries: FAT to boot from, and Linux."""
    def entry(active, kind, at, length):
        return struct.pack("<B3sB3sII", 0x80 if active else 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", at // 512, length // 512)
    return entry(True, 0x0c, BOOT_AT, BOOT_SIZE) + entry(False, 0x83, DATA_AT, size - DATA_AT) + bytes(32) + b"\x55\xaa"


def boot_code():
    for folder in ("/usr/lib/SYSLINUX", "/usr/lib/syslinux", "/usr/lib/syslinux/mbr"):
        path = pathlib.Path(folder) / "mbr.bin"
        if path.exists():
            return path.read_bytes()
    return peers.missing("mbr.bin of syslinux")


def make(path, size, scratch):
    """Writes the raw disk; returns the kernel's version."""
    peers.need("syslinux", "mcopy")
    mkfs = shutil.which("mkfs.fat", path=os.environ["PATH"] + ":/sbin:/usr/sbin") or peers.missing("mkfs.fat")
    kernel, modules = find_kernel()
    (scratch / "initrd.gz").write_bytes(initramfs(modules))
    (scratch / "syslinux.cfg").write_text(CONFIG)
    with open(path, "wb") as f:
        code = boot_code()
        assert len(code) <= 440
        f.write(code.ljust(446, b"\0") + partition_table(size))
        f.truncate(size)
    run.run(mkfs, "-F", "16", "-h", str(BOOT_AT // 512), "--offset", str(BOOT_AT // 512), path, str(BOOT_SIZE // 1024))
    inside = f"{path}@@{BOOT_AT}"
    for source, name in ((kernel, "vmlinuz"), (scratch / "initrd.gz", "initrd.gz"), (scratch / "syslinux.cfg", "syslinux.cfg")):
        run.run("mcopy", "-i", inside, source, f"::{name}")
    run.run("syslinux", "--install", "--offset", str(BOOT_AT), path)
    return modules.name

# SPDX-License-Identifier: MIT
"""The program as a whole: global options, names it is called by, help (FEATURES 5a)."""
import os
import re
import subprocess

import pytest

from lib import peers, run

COMMANDS = ["create", "info", "check", "map", "measure", "convert", "compare", "resize", "amend", "dd", "bench", "io", "serve", "ctl", "job", "help", "completion"]


@pytest.fixture
def links(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("qemu-img", "qemu-io"):
        (folder / name).symlink_to(os.path.abspath(run.BYRE))
    return folder


def test_global_options(tmp_path):
    """FEATURES 5.001: help and version, with the list of formats"""
    done = run.byre("--help")
    assert re.search(r"^Supported formats:.*\bqcow2\b.*\braw\b|^Supported formats:.*\braw\b.*\bqcow2\b", done.out, re.M)
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", done.out, re.M)
    assert run.byre("-h").out == done.out
    assert re.match(r"byre version \d+\.\d+\.\d+", run.byre("-V").out)
    assert run.byre("--version").code == 0


def test_what_a_start_loads():
    """libnbd and gnutls, with the twenty libraries behind them, wait for the first disk that needs them; a note in the file names them"""
    loads = run.run(run.BYRE, env={"LD_TRACE_LOADED_OBJECTS": "1"}).out
    assert "libjansson" in loads and not re.search("libnbd|gnutls|libxml|libicu|libpam", loads)
    notes = run.run("readelf", "-p", ".note.dlopen", run.BYRE).out
    assert all(f'"soname":["{name}"]' in notes for name in ("libnbd.so.0", "libgnutls.so.30", "libpam.so.0"))


@pytest.mark.parametrize("words", [[], ["bogus"], ["--bogus"], ["info"], ["info", "--bogus"]])
def test_wrong_usage(words):
    """FEATURES 5.009"""
    done = run.byre(*words, code=1)
    assert done.out == "" and done.err.startswith("byre: ") and "--help" in done.err
    assert run.run(peers.need("qemu-img"), *words, code=None).code == 1


def test_later_global_options():
    """FEATURES 5.001: tracing is not there yet, and says so"""
    assert "no trace points" in run.byre("-T", "enable=x", "info", "y", code=1).err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name):
    """FEATURES 5.001: --help and -h, exit 0, every option with a text"""
    done = run.byre(name, "--help")
    assert done.out == run.byre(name, "-h").out == run.byre("help", name).out
    assert done.out.startswith(f"usage: byre {name} ")
    lines = [line for line in done.out.splitlines() if line.startswith("  ")]
    assert any("--help" in line for line in lines)


def test_called_as_qemu_img(links, tmp_path):
    """DESIGN D8: a link named qemu-img behaves as that; our own subcommands are not there"""
    img = links / "qemu-img"
    run.run(img, "create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    assert run.run(img, "info", tmp_path / "x").out == run.run(peers.need("qemu-img"), "info", tmp_path / "x").out
    for name in ("serve", "ctl", "job", "io", "help", "completion"):
        done = run.run(img, name, code=1)
        assert done.err.startswith("qemu-img: ") and "Try 'qemu-img --help' for more information" in done.err
    assert run.run(img, "-V").out.startswith("qemu-img version ")
    assert run.run(img, "info", tmp_path / "none", code=1).err.startswith("qemu-img: Could not open '")


def test_called_as_qemu_io(links, tmp_path):
    """DESIGN D8"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    done = run.run(links / "qemu-io", "-c", "write -P 3 0 4k", "-c", "length", tmp_path / "x")
    assert done.out.endswith("1 MiB\n")
    assert run.run(links / "qemu-io", "-V").out.startswith("qemu-io version ")
    assert run.run(links / "qemu-io", "--bogus", code=1).err.startswith("qemu-io: ")


def test_strict(tmp_path):
    """DESIGN D8: --strict guesses nothing"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    assert "format" in run.byre("--strict", "info", tmp_path / "x", code=1).err
    run.byre("--strict", "info", "-f", "qcow2", tmp_path / "x")
    run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "json:{}", "-F", "qcow2", tmp_path / "y", "1M")
    run.byre("--strict", "map", "-f", "qcow2", tmp_path / "y", code=1)


def test_missing_backing_format_warns(tmp_path):
    """DESIGN D8: the ecosystem's rule: opened all the same, with a warning"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "base", "1M")
    run.byre("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "x", "1M")
    data = bytearray((tmp_path / "x").read_bytes())
    at = data.find(b"\xe2\x79\x2a\xca")
    data[at:at + 4] = b"\x12\x34\x56\x78"                     # the extension with the format becomes one that nobody knows
    (tmp_path / "x").write_bytes(data)
    done = run.byre("map", "--output=json", tmp_path / "x")
    assert "warning" in done.err and "format" in done.err


def test_output_that_cannot_be_written():
    """A full disk behind standard output is not success"""
    with open("/dev/full", "w") as full:
        import subprocess
        done = subprocess.run([run.BYRE, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "standard output" in done.stderr


MODES = {"none": (True, True, False), "writeback": (False, True, False), "writethrough": (False, True, True), "directsync": (True, True, True),
         "unsafe": (False, False, False)}


@pytest.mark.parametrize("mode", MODES)
def test_cache_modes(tmp_path, mode):
    """FEATURES 5.006, 3.004, 3.066, 11.026: direct I/O, flushes and durable writes, as the mode says"""
    direct, flushes, durable = MODES[mode]
    peers.need("strace")
    run.byre("create", "-q", "-f", "raw", "x", "1M", cwd=tmp_path)
    run.run("strace", "-ff", "-o", "trace", "-e", "trace=openat,fdatasync,pwritev2", run.BYRE, "io", "-f", "raw", "-i", "threads", "-t", mode, "-c", "write 0 4k",
            "-c", "write 8k 4k", "-c", "flush", "x", cwd=tmp_path)
    text = "".join(p.read_text() for p in tmp_path.glob("trace.*"))
    opened = [line for line in text.splitlines() if '"x"' in line and "O_RDWR" in line]
    assert opened and all(("O_DIRECT" in line) == direct for line in opened)
    assert ("fdatasync(" in text) == flushes
    assert (text.count("RWF_DSYNC") >= 2 or text.count("fdatasync(") >= 3) == durable


@pytest.mark.parametrize("words", [["snapshot", "-d", "nosuch", "IMAGE"], ["resize", "IMAGE", "1M"], ["io", "-f", "qcow2", "-c", "foo", "IMAGE"]], ids=lambda w: w[0])
def test_without_standard_files(tmp_path, words):
    """FEATURES 5.001: started without standard input, output and error byre does not take an image that it opens for one of them: complaints were written over its header"""
    image = tmp_path / "i.qcow2"
    run.byre("create", "-q", "-f", "qcow2", image, "4M")
    before = image.read_bytes()
    code = subprocess.run([run.BYRE, *(image if w == "IMAGE" else w for w in words)], preexec_fn=lambda: [os.close(fd) for fd in range(3)], check=False).returncode
    assert code != 0 and image.read_bytes() == before

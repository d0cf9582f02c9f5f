# SPDX-License-Identifier: MIT
"""The filter blkdebug below a format: rules as a file, events, states, breakpoints, beside the peer (FEATURES 3.052, 3.053, 6.015)."""
import os
import pathlib
import re
import shutil

import pytest

from lib import run

FILE = "blkdebug:rules:x"


def error(event, **more):
    return "\n".join(["[inject-error]", f'event = "{event}"', *(f'{key} = "{value}"' for key, value in more.items())]) + "\n"


def state(event, old, new):
    return f'[set-state]\nevent = "{event}"\nstate = "{old}"\nnew_state = "{new}"\n'


def give_rules(twin, text):
    for folder in {twin.ours, twin.theirs}:
        with open(os.path.join(folder, "rules"), "w") as f:
            f.write(text)


def both(twin, fmt, *commands, image=FILE, mode="writeback"):
    words = [w for c in commands for w in ("-c", c)]
    ours, theirs = twin.io("-t", mode, "-f", fmt, *words, image)
    assert ours.code == theirs.code, f"{ours}\n=== the peer:\n{theirs}"
    return ours, theirs


def first_words(text):
    """Of what was done and what failed; not how long it took, nor the line that counts."""
    return [line for line in text.splitlines() if "ops/sec" not in line]


RAW = {
    "once": (error("write_aio", errno=28, once="on"), ["read 0 4k", "write 0 4k", "write 0 4k"]),
    "stays-active": (error("write_aio", errno=28), ["read 0 4k", "write 0 4k", "read 0 4k", "discard 0 4k", "write -z 0 4k"]),
    "first-of-two": (error("write_aio", errno=28) + error("write_aio", errno=12), ["write 0 4k"]),
    "event-replaces-none": (error("none", iotype="read", errno=12) + error("write_aio", iotype="write", errno=28, once="on"),
                            ["read 0 4k", "write 0 4k", "read 0 4k"]),
    "sector": (error("none", sector=1), ["read 0 512", "read 512 512", "write 0 4k", "write 1024 512"]),
    "any-sector": (error("none", sector=-1, state=0, immediately="on"), ["read 0 512"]),
    "kinds": (error("none", iotype="write-zeroes", errno=12) + error("none", iotype="discard", errno=28), ["read 0 4k", "write 0 4k", "write -z 0 4k", "discard 0 4k"]),
    "states": (state("write_aio", 1, 2) + state("write_aio", 2, 3) + error("write_aio", state=3, errno=28), ["write 0 4k"] * 4 + ["read 0 4k"]),
    "state-goes-by": (state("read_aio", 1, 2) + error("write_aio", state=1, errno=28, iotype="write"), ["write 0 4k", "read 0 4k", "write 4k 4k"]),
    "nothing-happens": (error("l1_update"), ["read 0 4k", "write 0 4k", "flush"]),
    "pwritev": (error("pwritev", once="on"), ["write 0 4k", "write 0 4k"]),
    "pwritev-zero": (error("pwritev_zero", once="on"), ["write 0 4k", "write -z 0 4k", "read 0 4k"]),
    "pwritev-done": (error("pwritev_done", once="on", iotype="read"), ["read 0 4k", "write 0 4k", "read 0 4k", "read 0 4k"]),
    "hexadecimal-and-comments": ("# a comment\n\n" + error("write_aio", errno="0x1c").replace(" = ", "  =  ").replace("event", "  event"), ["write 0 4k"]),
    "a-name": (error("write_aio").replace("]", ' "one"]'), ["write 0 4k"]),
    "empty": ("", ["write 0 4k"]),
}


@pytest.mark.parametrize("name", RAW)
def test_rules_over_raw(twin, name):
    """FEATURES 3.052: the same file of rules, the same requests: the same ones fail, with the same error"""
    text, commands = RAW[name]
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1M"])
    give_rules(twin, text)
    ours, theirs = both(twin, "raw", *commands)
    assert first_words(ours.out) == first_words(theirs.out), f"{ours}\n=== the peer:\n{theirs}"


@pytest.mark.parametrize("text", ["[inject-error]", error("nope"), error("none", errno="x"), error("none", foo=1), error("none", iotype="bad"), error("none", once="maybe"),
                                  "[what]\nevent = \"none\"\n", "event = \"none\"\n", "[inject-error]\nevent none = \"none\"\n", "[inject-error\nevent = \"none\"\n", "[inject-error]\nevent = none\n"])
def test_rules_that_are_refused(twin, text):
    """FEATURES 3.052: the file, the line and what is wrong there are named"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1M"])
    give_rules(twin, text)
    ours, _ = both(twin, "raw", "read 0 4k")
    assert ours.code == 1 and "rules:" in ours.err, ours


def test_names(twin):
    """FEATURES 3.052: without a file of rules, without an image, with a file that is not there; the format is found out; options beside a file"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "4M"], ["qemu-img", "create", "-q", "-f", "raw", "r", "1M"])
    give_rules(twin, error("pwritev", errno=28))
    for name in ("blkdebug::x", "blkdebug:x", "blkdebug:nofile:x", "blkdebug:rules:nofile", "blkdebug::nbd:what"):
        both(twin, "qcow2", "read 0 4k", image=name)
    for name, code in (("blkdebug::x", 0), ("blkdebug::r", 0), (FILE, 1)):
        ours, theirs = twin.io("-c", "write 4k 4k", name)
        assert (ours.code, theirs.code) == (code, code), f"{ours}\n=== the peer:\n{theirs}"
    node = "driver=raw,file.driver=blkdebug,file.config=rules,file.image.driver=file,file.image.filename=r,file.inject-error.0.event=pwritev,file.inject-error.0.errno=12"
    ours, theirs = twin.io("--image-opts", "-c", "write 0 4k", node)
    assert "No space" in ours.out and "No space" in theirs.out              # rules of the file come first
    assert "No such file" in run.run(run.BYRE, "info", "blkdebug:nofile:x", code=1, cwd=twin.ours).err
    assert "guessed raw" in twin.io("-c", "read 0 512", "blkdebug::r")[0].err
    assert "fail" in twin.io("-c", "write -s x 0 512", "blkdebug::r")[0].out        # what would make an image of it


@pytest.mark.parametrize("event", ["pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail", "pwritev_rmw_after_tail", "pwritev"])
def test_events_of_an_alignment(twin, event):
    """FEATURES 3.052, 3.054: the events of a write that covers its first or last block in part, of just those"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1M"])
    give_rules(twin, error(event, errno=28))
    node = "driver=raw,file.driver=blkdebug,file.config=rules,file.align=4096,file.image.driver=file,file.image.filename=x"
    for where in ("100 100", "0 100", "100 3996", "100 8k", "4k 4k"):
        ours, theirs = twin.io("-t", "writeback", "--image-opts", "-c", f"write {where}", node)
        assert ("No space" in ours.out) == ("No space" in theirs.out), f"{where}: {ours}\n=== the peer:\n{theirs}"


def test_the_page_has_all_events():
    """Each event that blockdev-add takes stands in byre(1), once."""
    header = (run.TOP / "src/stor/event.h").read_text()
    page = (pathlib.Path(run.BYRE).resolve().parent / "src/bin/byre.1").read_text().replace("\\-", "-")
    section = page[page.index(".Sh FAULTS ON PURPOSE"):page.index(".Sh SECRETS")]
    words = ["none", *re.findall(r'^    X\(\w+, "(\w+)"', header, re.M)]
    assert len(words) == 48
    assert re.findall(r"^\.It Cm (\w+)$", section, re.M) == words


# event: what raises it, what does not (the command alone; "": everything does). Over an overlay with a plain cluster at 8M and a compressed one at 9M.
WRITE, READ, PACKED = "write 32k 4k", "read 8M 4k", "write -c 1M 64k"
QCOW2 = {
    "l2_load": (READ, ""), "l2_update": (WRITE, READ), "l2_update_compressed": (PACKED, WRITE), "l1_update": ("write 1G 64k", WRITE),
    "l1_grow_alloc_table": ("truncate 128G", WRITE), "l1_grow_write_table": ("truncate 128G", WRITE), "l1_grow_activate_table": ("truncate 128G", WRITE),
    "read_aio": (READ, "read 9M 4k"), "read_backing_aio": (WRITE, READ), "read_compressed": ("read 9M 4k", READ), "write_aio": (WRITE, PACKED),
    "write_compressed": (PACKED, WRITE), "vmstate_save": ("write -b 0 64k", WRITE), "cow_read": (WRITE, READ), "cow_write": (WRITE, READ),
    "reftable_load": (READ, ""), "refblock_load": (WRITE, READ), "refblock_update_part": (WRITE, READ), "refblock_alloc": (WRITE, READ),
    "cluster_alloc": (WRITE, READ), "cluster_alloc_bytes": (PACKED, WRITE), "cluster_free": ("discard 8M 64k", READ), "flush_to_os": (WRITE, ""),
    "flush_to_disk": (WRITE, ""), "pwritev": (WRITE, READ), "pwritev_done": (WRITE, READ),
}


@pytest.fixture
def overlay(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "base", "2G"], ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "x"],
              ["qemu-io", "-f", "qcow2", "-c", "write -P 1 8M 64k", "-c", "write -c 9M 64k", "x"])
    return twin


@pytest.mark.parametrize("event", QCOW2)
def test_events_of_qcow2(overlay, event):
    """FEATURES 3.052: what raises an event in the peer does so here: the request behind it fails in both; what does not, does not"""
    give_rules(overlay, error(event, errno=28))
    raises, other = QCOW2[event]
    if other:
        ours, _ = both(overlay, "qcow2", other, "flush")
        assert ours.code == 0, ours
    words = ["-c", raises, "-c", "flush", "-c", "read 0 512"]
    for one in overlay.io("-t", "writeback", "-f", "qcow2", *words, FILE):
        assert one.code or "No space" in one.out + one.err, one
    run.qemu_img("check", "-q", os.path.join(overlay.ours, "x"), code=(0, 3))


def fails(twin, fmt, event, *commands, peer=True):
    """With a rule for this event some request of the commands fails, and without one none does, in both programs."""
    words = [w for c in commands for w in ("-c", c)]
    shutil.copy(os.path.join(twin.ours, "x"), os.path.join(twin.ours, "before"))
    for rule, wanted in ((error("none", state=9), False), (error(event, errno=28), True)):
        for folder in (twin.ours, twin.theirs):
            shutil.copy(os.path.join(twin.ours, "before"), os.path.join(folder, "x"))
        give_rules(twin, rule)
        ours, theirs = twin.io("-t", "writeback", "-f", fmt, *words, FILE)
        assert bool(ours.code) == wanted, (event, ours)
        assert not peer or bool(theirs.code) == wanted, (event, theirs)


GROWING = ["reftable_grow", "refblock_alloc_write_blocks", "refblock_alloc_write_table", "refblock_alloc_switch_table"]
RARE = [
    *[(event, "-o cluster_size=512,refcount_bits=64 x 16M", [], ["write 0 3M", "flush"]) for event in GROWING],
    *[(event, "-o cluster_size=4k,refcount_bits=64 x 64M", [], ["write 0 24M", "flush"]) for event in ("refblock_alloc_write", "refblock_alloc_hookup")],
    *[(event, "x 64M", ["qemu-img", "snapshot", "-c", "s", "x"], ["write 64k 64k", "flush"]) for event in ("l2_alloc_cow_read", "l2_alloc_write")],
    *[(event, "x 4G", ["qemu-io", "-c", "write 3G 64k", "x"], ["truncate 64M", "read 0 4k"]) for event in ("l1_shrink_write_table", "l1_shrink_free_l2_clusters")],
    ("vmstate_load", "x 64M", [], ["write -b 0 64k", "read -b 0 64k"]), ("cluster_alloc_space", "x 64M", [], ["write 100k 4k", "flush"]),
    ("pwritev_zero", "-o cluster_size=2M x 64M", ["qemu-io", "-c", "write 0 2M", "-c", "discard 0 2M", "x"], ["write 100k 4k", "flush"]),
]


@pytest.mark.parametrize("event,image,before,commands", RARE, ids=[r[0] for r in RARE])
def test_rare_events_of_qcow2(twin, event, image, before, commands):
    """FEATURES 3.052: growing tables, tables that a snapshot shares, a smaller size, a VM state, zeroed clusters"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", *image.split()], ["qemu-io", "-c", "write 0 64k", "x"], *([before] if before else []))
    fails(twin, "qcow2", event, *commands)


def test_event_of_an_image_that_is_emptied(twin):
    """FEATURES 3.052: a commit that cannot empty the overlay"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "base", "4M"], ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "x"], ["qemu-io", "-c", "write 0 64k", "x"])
    give_rules(twin, error("empty_image_prepare", errno=28))
    ours, theirs = twin.img("commit", "-f", "qcow2", FILE)
    assert (ours.code, theirs.code) == (1, 1) and "No space" in ours.err, f"{ours}\n=== the peer:\n{theirs}"


def test_event_of_copy_on_read(twin):
    """FEATURES 3.051, 3.052: the filter over blkdebug writes down what it has read; the read is answered all the same"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "base", "4M"], ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "x"])
    give_rules(twin, error("cor_write", errno=28, iotype="write"))
    node = "driver=copy-on-read,file.driver=qcow2,file.file.driver=blkdebug,file.file.config=rules,file.file.image.driver=file,file.file.image.filename=x"
    ours, _ = twin.io("--image-opts", "-c", "read 1M 4k", "-c", "write 0 4k", node)
    assert "read 4096/4096" in ours.out and "No space" in ours.out, ours


QED = {"l1_update": True, "l2_update": True, "read_aio": True, "read_backing_aio": True, "write_aio": True, "cow_write": True, "flush_to_os": True, "flush_to_disk": True,
       "cow_read": False, "l2_load": False, "l2_alloc_write": False, "cluster_alloc": False}


@pytest.mark.parametrize("event", QED)
def test_events_of_qed(twin, event):
    """FEATURES 3.052: the peer has some of them as well"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "base", "64M"], ["qemu-img", "create", "-q", "-f", "qed", "-b", "base", "-F", "raw", "x"])
    fails(twin, "qed", event, "write 32k 4k", "flush", "read 32k 4k", "read 1M 4k", peer=QED[event])


def test_files_that_hold_no_rules(tmp_path):
    """FEATURES 3.052: a pipe that nobody writes to is not waited for; a device that never ends, a folder, bytes that are no text"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "x", "1M")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").write_bytes(b"[inject-error]\nevent = \"none\"\n\0[what]\n")
    (tmp_path / "long").write_bytes(b"#" * (1 << 20))
    (tmp_path / "bytes").write_bytes(b"[inject-error]\nevent = \"\xff\xfe\"\n")
    for rules, word in (("pipe", "regular"), ("/dev/zero", "regular"), (".", "directory"), ("zeros", "byte 0 at 30"), ("long", "large"), ("bytes", "bytes:2")):
        assert word in run.byre("io", "-f", "raw", "-c", "read 0 512", f"blkdebug:{rules}:x", code=1, cwd=tmp_path, timeout=60).err, rules


@pytest.mark.parametrize("errno", [116, 117])
@pytest.mark.parametrize("event", ["l2_load", "l2_alloc_cow_read", "write_aio"])
def test_what_file_systems_say_is_no_word_about_the_image(twin, event, errno):
    """FEATURES 3.052: ESTALE ("that block has moved, look again") and EUCLEAN ("this table makes no sense") mean something here; from storage each is an error like any: it ends
    the request, and the image is not marked as corrupt"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "64M"], ["qemu-io", "-c", "write -P 1 0 1M", "x"], ["qemu-img", "snapshot", "-c", "s", "x"])
    give_rules(twin, error(event, errno=errno, once="on", iotype="write" if event == "write_aio" else "read"))
    done = run.byre("io", "-t", "writeback", "-f", "qcow2", "-c", "write -P 2 0 64k", "-c", "write -P 2 0 64k", "-c", "read -P 2 0 64k", "-c", "read -P 1 64k 64k", "-c", "flush", FILE,
                    code=1, cwd=twin.ours, timeout=60)
    assert (done.out + done.err).count("failed: Input/output error") == 1 and "corrupt" not in done.err, done
    assert "corrupt: false" in run.byre("info", "x", cwd=twin.ours).out
    run.qemu_img("check", "-q", os.path.join(twin.ours, "x"))


def test_event_of_layers_in_between(twin):
    """FEATURES 3.052: what a filter below the overlay reads concerns the overlay's file, and not that of the image below the filter"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "base", "4M"], ["qemu-io", "-c", "write -P 1 0 64k", "base"], ["qemu-img", "create", "-q", "-f", "qcow2", "x", "4M"])
    give_rules(twin, error("read_backing_aio", errno=28))
    below = ("driver=qcow2,file.filename=x,backing.driver=blkdebug,backing.image.driver=qcow2,backing.image.file.driver=blkdebug,backing.image.file.config=rules,"
             "backing.image.file.image.driver=file,backing.image.file.image.filename=base")
    assert run.byre("io", "-r", "--image-opts", "-c", "read -P 1 0 4k", "-c", "read -P 1 4k 4k", below, cwd=twin.ours).out.count("read 4096/4096") == 2


# ---- breakpoints ----

def same(twin, fmt, *commands):
    """What was done, in which order, equals the peer's."""
    ours, theirs = both(twin, fmt, *commands, image="blkdebug::x")
    assert first_words(ours.out) == first_words(theirs.out), f"{ours}\n=== the peer:\n{theirs}"
    return ours


STOPS = {
    "one": ["break write_aio A", "aio_write -P 1 0 4k", "wait_break A", "read -P 0 0 4k", "resume A", "aio_flush", "read -P 1 0 4k"],
    "only-one": ["break write_aio A", "aio_write -P 1 0 4k", "wait_break A", "write -P 2 64k 4k", "read -P 2 64k 4k", "resume A", "aio_flush", "aio_write -P 3 0 4k", "aio_flush"],
    "lands-after": ["break write_aio A", "aio_write -P 1 0 4k", "wait_break A", "write -P 2 0 8k", "read -P 2 0 8k", "resume A", "aio_flush", "read -P 1 0 4k",
                    "read -P 2 4k 4k"],
    "two-tags": ["break write_aio B", "break write_aio A", "aio_write -q -P 1 0 4k", "wait_break A", "wait_break B", "resume B", "read -P 0 0 4k", "resume B", "resume A", "aio_flush",
                 "read -P 1 0 4k"],
    "read": ["write -P 1 0 4k", "break read_aio A", "aio_read -P 1 0 4k", "wait_break A", "write -P 2 4k 4k", "resume A", "aio_flush"],
    "unknown": ["break nope A", "resume A", "remove_break A", "break write_aio", "remove_break", "resume A B"],
    "removed": ["break write_aio A", "remove_break A", "write 0 4k", "remove_break A"],
}


@pytest.mark.parametrize("name", STOPS)
def test_breakpoints_over_raw(twin, name):
    """FEATURES 3.053, 6.015: what stands still has not happened, others pass it, and it lands when it goes on"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1M"])
    same(twin, "raw", *STOPS[name])


def test_without_the_filter(twin):
    """FEATURES 6.015: there is nothing that could stop a request"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1M"])
    both(twin, "raw", "break write_aio A", "resume A", "remove_break A", image="x")
    assert "not supported" in run.run(run.BYRE, "io", "-f", "raw", "-c", "wait_break A", "x", code=1, cwd=twin.ours).out


@pytest.mark.parametrize("event", ["cow_write", "cow_read", "cluster_alloc", "l2_load", "refblock_load", "write_aio"])
def test_a_first_write_stands(overlay, event):
    """FEATURES 3.053, 6.015: at whatever event, nothing is to be seen of it until it goes on; the layer below is not changed"""
    out = same(overlay, "qcow2", f"break {event} A", "aio_write -q -P 5 1M 4k", "wait_break A", *(["read -P 0 1M 4k"] if event[:3] == "cow" or event == "write_aio" else []), "resume A",
               "aio_flush", "read -P 5 1M 4k", "read -P 0 1028k 4k").out
    assert out.index("Suspended request 'A'") < out.index("Resuming request 'A'")


@pytest.mark.asan
@pytest.mark.tsan
def test_the_program_ends_though_a_request_stands(twin):
    """FEATURES 6.015: it goes on then, and what the close has to write passes breakpoints that are left"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "4M"])
    run.run(run.BYRE, "io", "-f", "qcow2", "-c", "break write_aio A", "-c", "aio_write -P 7 0 4k", "-c", "wait_break A", "-c", "break l2_update B", "-c", "break flush_to_disk C",
            "blkdebug::x", cwd=twin.ours)
    run.run(run.BYRE, "io", "-c", "read -P 7 0 4k", "x", cwd=twin.ours)


@pytest.mark.parametrize("event", ["l2_update", "flush_to_disk"])
def test_killed_where_it_stands(twin, event):
    """FEATURES 3.053: in front of the tables and of the last flush of a write that is to be durable: the image is sound, and holds what was durable before"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "4M"], ["qemu-io", "-c", "write -P 3 0 64k", "x"])
    done = run.run(run.BYRE, "io", "-f", "qcow2", "-c", f"break {event} A", "-c", "aio_write -f -P 7 1M 4k", "-c", "wait_break A", "-c", "sigraise 9", "blkdebug::x", code=-9, cwd=twin.ours)
    assert "Suspended request 'A'" in done.out and "wrote" not in done.out
    run.qemu_img("check", "-q", os.path.join(twin.ours, "x"), code=(0, 3))
    run.qemu_io(os.path.join(twin.ours, "x"), "read -P 3 0 64k")
    if event == "l2_update":
        run.qemu_io(os.path.join(twin.ours, "x"), "read -P 0 1M 4k")


@pytest.mark.asan
@pytest.mark.tsan
def test_errors_where_it_stood(twin):
    """FEATURES 3.052, 3.053: a rule that the event made active meets the request when it goes on"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1M"])
    give_rules(twin, error("write_aio", errno=28, once="on"))
    for one in twin.io("-f", "raw", "-t", "writeback", "-c", "break write_aio A", "-c", "aio_write 0 4k", "-c", "wait_break A", "-c", "resume A", "-c", "aio_flush", "-c", "write 0 4k", FILE):
        assert "No space left" in one.out and "wrote 4096" in one.out, one

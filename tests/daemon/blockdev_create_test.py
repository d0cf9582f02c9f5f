# SPDX-License-Identifier: MIT
"""blockdev-create and x-blockdev-amend: the same commands to byre and to the peer make what the command lines of both make."""
import json
import os
import time

import pytest

from lib import run

MB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
SECRETS = [("s", "one"), ("t", "two")]
SECRET_WORDS = [w for name, data in SECRETS for w in ("--object", f"secret,id={name},data={data}")]


def job(client, command, **arguments):
    """Runs a job to its end and forgets it; its error, None when it ended well."""
    answer = client.ask(command, job_id="j", **arguments)
    assert answer == {"return": {}}, answer
    end = time.monotonic() + 30
    while True:
        found = [j for j in client.ask("query-jobs")["return"] if j["id"] == "j"]
        assert len(found) == 1 and found[0]["type"] == ("create" if command == "blockdev-create" else "amend"), found
        if found[0]["status"] == "concluded":
            break
        assert time.monotonic() < end, found
        time.sleep(0.01)
    assert (found[0]["current-progress"], found[0]["total-progress"]) == (1, 1)
    assert client.ask("job-dismiss", id="j") == {"return": {}}
    return found[0].get("error")


def theirs_makes(path, fmt, lists):
    """The peer measures its processor when it makes a LUKS header, and gives up on a busy machine: then it is asked again."""
    for _ in range(9):
        try:
            return run.qemu_img("create", "-q", *SECRET_WORDS, "-f", fmt, *lists, path)
        except run.Failed as e:
            if "accurate CPU usage" not in str(e):
                raise
    return run.qemu_img("create", "-q", *SECRET_WORDS, "-f", fmt, *lists, path)


def create(client, **options):
    """The same of its daemon."""
    options = {k.replace("_", "-"): v for k, v in options.items()}
    for _ in range(60):
        error = job(client, "blockdev-create", options=options)
        if not error or "accurate CPU usage" not in error:
            break
    return error


def begin(start, peer):
    daemon = start("daemon", peer=peer)
    client = daemon.qmp()
    for name, data in SECRETS:
        assert client.ask("object-add", qom_type="secret", id=name, data=data) == {"return": {}}
    return daemon, client


def add_file(client, name, filename, **more):
    if not more.get("read_only"):
        assert create(client, driver="file", filename=filename, size=0) is None
    assert client.ask("blockdev-add", driver="file", node_name=name, filename=filename, **more) == {"return": {}}


def info(path, fmt, *words):
    said = json.loads(run.qemu_img("info", "--output=json", *words, "-f", fmt, path).out)
    for key in ("filename", "actual-size", "children", "full-backing-filename"):
        said.pop(key, None)
    data = said.get("format-specific", {}).get("data", {})
    for crypt in (data, data.get("encrypt", {})):            # by chance, and by the speed of the machine
        for key in ("uuid", "master-key-iters"):
            crypt.pop(key, None)
        for slot in crypt.get("slots", []):
            slot.pop("iters", None)
    if "data-file" in data:
        data["data-file"] = os.path.basename(data["data-file"])
    return said


CASES = [
    ("qcow2", {"size": MB}, ""),
    ("qcow2", {"size": 0}, ""),
    ("qcow2", {"size": 5 * MB + 512, "version": "v2"}, "compat=0.10"),
    ("qcow2", {"size": 64 * MB, "cluster-size": 512, "refcount-bits": 1}, "cluster_size=512,refcount_bits=1"),
    ("qcow2", {"size": 64 * MB, "cluster-size": 2 * MB, "lazy-refcounts": True, "version": "v3"}, "cluster_size=2M,lazy_refcounts=on,compat=1.1"),
    ("qcow2", {"size": 4 * MB, "extended-l2": True, "cluster-size": 128 << 10, "preallocation": "metadata"}, "extended_l2=on,cluster_size=128k,preallocation=metadata"),
    ("qcow2", {"size": 4 * MB, "compression-type": "zstd", "preallocation": "full"}, "compression_type=zstd,preallocation=full"),
    ("qcow2", {"size": 4 * MB, "preallocation": "falloc"}, "preallocation=falloc"),
    ("qcow2", {"size": 4 * MB, "backing-file": "/no/such/base", "backing-fmt": "raw"}, "backing_file=/no/such/base,backing_fmt=raw"),
    ("qed", {"size": MB}, ""),
    ("qed", {"size": 8 * MB, "cluster-size": 4096, "table-size": 2, "backing-file": "/no/such/base", "backing-fmt": "raw"},
     "cluster_size=4k,table_size=2,backing_file=/no/such/base,backing_fmt=raw"),
    ("luks", {"size": MB, "key-secret": "s", "iter-time": 10}, "key-secret=s,iter-time=10"),
    ("luks", {"size": MB, "key-secret": "s", "iter-time": 10, "cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha256", "hash-alg": "sha512"},
     "key-secret=s,iter-time=10,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512"),
    ("qcow2", {"size": 2 * MB, "encrypt": {"format": "luks", "key-secret": "s", "iter-time": 10, "cipher-alg": "aes-128"}},
     "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128"),
]


@pytest.mark.parametrize("fmt,options,words", CASES, ids=lambda v: v.split("=")[0] if isinstance(v, str) else "-".join(v)[:40])
def test_as_the_command_line(start, tmp_path, fmt, options, words):
    """FEATURES 1.147, 8.012: in a node and in an inline definition, the image is the one that create makes with the same options; ours is the peer's"""
    told = []
    lists = ["-o", f"{words},size={options['size']}".lstrip(",")] + (["-u"] if "backing" in words else [])
    run.byre("create", "-q", *SECRET_WORDS, "-f", fmt, *lists, tmp_path / "ours")
    theirs_makes(tmp_path / "theirs", fmt, lists)
    paths = [tmp_path / "ours", tmp_path / "theirs"]
    for peer in (False,) if "cipher-alg" in words else (False, True):        # of its daemon one LUKS header is enough
        daemon, client = begin(start, peer)
        add_file(client, "f", "node")
        assert create(client, driver=fmt, file="f", **options) is None
        assert client.ask("blockdev-del", node_name="f") == {"return": {}}
        paths.append(f"{daemon.folder}/node")
        if not (peer and "key-secret" in words):             # that takes the peer long
            assert create(client, driver="file", filename="inline", size=0) is None
            assert create(client, driver=fmt, file={"driver": "file", "filename": "inline"}, **options) is None
            paths.append(f"{daemon.folder}/inline")
        assert client.ask("query-named-block-nodes")["return"] == []
        assert daemon.stop()[0] == 0
    for path in paths:
        if fmt != "luks" and "encrypt" not in options:
            if "backing" not in words:
                run.qemu_img("check", "-f", fmt, path)
            run.byre("check", "-f", fmt, path)
        told.append(info(path, fmt))
    assert all(t == told[0] for t in told), told
    opened = {"luks": ("driver=luks,key-secret=s", "raw"), "qcow2": ("driver=qcow2,encrypt.key-secret=s", "raw")}
    if "key-secret" in words:                                # and both open it with the secret
        for path in paths[2:]:
            out = run.qemu_img("info", *SECRET_WORDS, "--image-opts", f"{opened[fmt][0]},file.filename={path}").out
            assert "file format" in out
            run.byre("io", *SECRET_WORDS, "--image-opts", f"{opened[fmt][0]},file.filename={path}", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k")


@BOTH
def test_file(start, peer):
    """FEATURES 8.012: driver file makes a file of any length, or empties the one that is there"""
    daemon, client = begin(start, peer)
    path = f"{daemon.folder}/x"
    assert create(client, driver="file", filename="x", size=MB, preallocation="full", nocow=True, extent_size_hint=65536) is None
    assert os.stat(path).st_size == MB and os.stat(path).st_blocks * 512 >= MB
    with open(path, "r+b") as f:
        f.write(b"old")
    assert create(client, driver="file", filename="x", size=1000) is None
    assert open(path, "rb").read() == bytes(1000)
    assert "no/such" in create(client, driver="file", filename="no/such/x", size=1)
    assert create(client, driver="file", filename="x", size=MB, preallocation="metadata")
    assert peer or os.stat(path).st_size == 1000


BAD = [
    ({"driver": "qcow2", "file": "zz", "size": MB}, "zz"), ({"driver": "qcow2", "file": "f", "size": MB + 1}, "512"),
    ({"driver": "qcow2", "file": "f", "size": MB, "cluster-size": 1000}, "512"), ({"driver": "qcow2", "file": "f", "size": MB, "refcount-bits": 128}, "64"),
    ({"driver": "qcow2", "file": "f", "size": MB, "lazy-refcounts": True, "version": "v2"}, ""), ({"driver": "qcow2", "file": "f", "size": MB, "backing-fmt": "raw"}, "backing"),
    ({"driver": "qcow2", "file": "f", "size": MB, "data-file-raw": True}, "data"), ({"driver": "qcow2", "file": "f", "size": MB, "data-file": "f"}, "'f'"),
    ({"driver": "qcow2", "file": "f", "size": MB, "data-file": "d", "version": "v2"}, ""), ({"driver": "qcow2", "file": "f", "size": MB, "data-file": "zz"}, "zz"),
    ({"driver": "qcow2", "file": "f", "size": MB, "backing-file": "a", "backing-fmt": "raw", "preallocation": "full"}, ""),
    ({"driver": "qcow2", "file": {"driver": "file", "filename": "nothing"}, "size": MB}, "nothing"), ({"driver": "qed", "file": "f", "size": MB, "table-size": 3}, "16"),
    ({"driver": "qed", "file": "f", "size": MB, "cluster-size": 3}, "4096"), ({"driver": "luks", "file": "f", "size": MB}, "key-secret"),
    ({"driver": "luks", "file": "f", "size": MB, "key-secret": "nobody"}, "nobody"), ({"driver": "qcow2", "file": "f", "size": MB, "encrypt": {"format": "luks"}}, "key-secret"),
    ({"driver": "qcow2", "file": "ro", "size": MB}, "read-only"),
]


@BOTH
def test_bad_options(start, peer):
    """FEATURES 9.018: what is wrong is the job's error, it stays until it is dismissed, and nothing was touched"""
    daemon, client = begin(start, peer)
    for name in ("f", "d"):
        add_file(client, name, name)
    open(f"{daemon.folder}/ro", "wb").close()
    add_file(client, "ro", "ro", read_only=True)
    with open(f"{daemon.folder}/f", "r+b") as f:
        f.write(b"keep" * 1024)
    for options, word in BAD:
        error = job(client, "blockdev-create", options=options)
        assert error and word in error, (options, error)
        assert peer or open(f"{daemon.folder}/f", "rb").read() == b"keep" * 1024, options
    for options in ({"driver": "odd", "size": 1}, {"driver": "qcow2", "file": "f"}, {"driver": "qcow2", "file": "f", "size": "1"}, {"driver": "qcow2", "file": "f", "size": MB, "odd": 1},
                    {"driver": "qcow2", "file": "f", "size": MB, "version": "v4"}, {"driver": "qcow2", "file": "f", "size": MB, "encrypt": {"key-secret": "s"}},
                    {"driver": "raw", "file": "f", "size": MB}, {"driver": "luks", "size": "1", "key-secret": "s"}, {"driver": "qcow2", "file": "f", "size": MB, "backing-file": "a", "backing-fmt": "odd"}):
        assert client.ask("blockdev-create", job_id="j", options=options)["error"]["class"] == "GenericError", options
    assert client.ask("query-jobs")["return"] == []
    for bad in ("", "0 bad"):
        assert "job ID" in client.ask("blockdev-create", job_id=bad, options={"driver": "qcow2", "file": "f", "size": MB})["error"]["desc"]


@BOTH
def test_states(start, peer):
    """FEATURES 9.018, 8.024: created to concluded with its events; the id is taken until job-dismiss; no block job"""
    daemon, client = begin(start, peer)
    add_file(client, "f", "f")
    for options, last in (({"driver": "qcow2", "file": "f", "size": MB}, ["waiting", "pending", "concluded"]), ({"driver": "qcow2", "file": "zz", "size": MB}, ["aborting", "concluded"])):
        client.events.clear()
        assert client.ask("blockdev-create", job_id="k", options=options) == {"return": {}}
        states = []
        while "concluded" not in states:
            event = client.events.pop(0) if client.events else client.receive()
            assert event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == "k"
            states.append(event["data"]["status"])
        assert states == ["created", "running", *last]
        assert "in use" in client.ask("blockdev-create", job_id="k", options=options)["error"]["desc"]
        assert client.ask("query-block-jobs")["return"] == []
        for verb in ("job-cancel", "job-pause", "job-finalize"):
            assert "concluded" in client.ask(verb, id="k")["error"]["desc"]
        assert ("error" in client.ask("query-jobs")["return"][0]) == (last[0] == "aborting")
        assert client.ask("job-dismiss", id="k") == {"return": {}}
        assert client.ask("query-jobs")["return"] == []
    assert client.ask("blockdev-del", node_name="f") == {"return": {}}


@BOTH
def test_in_use(start, peer, tmp_path):
    """FEATURES 11.002, 3.007: a node that somebody writes is not formatted, here or by another process; what it holds stays"""
    daemon, client = begin(start, peer)
    add_file(client, "f", "f")
    assert create(client, driver="qcow2", file="f", size=MB) is None
    assert client.ask("blockdev-add", driver="qcow2", node_name="q", file="f") == {"return": {}}
    assert "'f'" in create(client, driver="qcow2", file="f", size=2 * MB)
    assert client.ask("blockdev-del", node_name="q") == {"return": {}}
    assert client.ask("blockdev-del", node_name="f") == {"return": {}}
    assert info(f"{daemon.folder}/f", "qcow2")["virtual-size"] == MB
    other, second = begin(start, not peer)
    assert second.ask("blockdev-add", driver="qcow2", node_name="q", file={"driver": "file", "filename": f"{daemon.folder}/f"}) == {"return": {}}
    words = "lock" if peer else "in use"
    assert words in create(client, driver="qcow2", file={"driver": "file", "filename": "f"}, size=2 * MB)
    assert words in create(client, driver="file", filename="f", size=0)
    assert other.stop()[0] == 0
    assert info(f"{daemon.folder}/f", "qcow2")["virtual-size"] == MB


@BOTH
def test_over_filters(start, peer):
    """FEATURES 8.012, 1.147: an image is made through filters and in a part of a file"""
    daemon, client = begin(start, peer)
    assert client.ask("object-add", qom_type="throttle-group", id="g") == {"return": {}}
    add_file(client, "f", "f")
    assert client.ask("blockdev-add", driver="throttle", node_name="slow", throttle_group="g", file="f") == {"return": {}}
    assert create(client, driver="qcow2", file="slow", size=MB) is None
    assert create(client, driver="qed", file={"driver": "blkdebug", "image": "slow"}, size=2 * MB) is None
    assert client.ask("blockdev-del", node_name="slow") == {"return": {}}
    assert client.ask("blockdev-del", node_name="f") == {"return": {}}
    assert info(f"{daemon.folder}/f", "qed")["virtual-size"] == 2 * MB
    assert create(client, driver="file", filename="part", size=MB) is None
    assert create(client, driver="qcow2", file={"driver": "raw", "offset": 65536, "file": {"driver": "file", "filename": "part"}}, size=3 * MB) is None
    out = run.qemu_img("check", "--image-opts", f"driver=qcow2,file.driver=raw,file.offset=65536,file.file.driver=file,file.file.filename={daemon.folder}/part").out
    assert "No errors" in out and open(f"{daemon.folder}/part", "rb").read(65536) == bytes(65536)


@pytest.mark.parametrize("fmt", ["qcow2", "qed", "luks"])
def test_failing_disk(start, fmt):
    """FEATURES 8.012: whichever request fails, the job tells it, and neither a new image nor the old one is left there"""
    daemon, client = begin(start, False)
    more = {"key-secret": "s", "iter-time": 10} if fmt == "luks" else {}
    path = f"{daemon.folder}/f"
    failed = 0
    for rule in [{"iotype": "flush"}] + [{"iotype": "write", "sector": n} for n in (0, 8, 64, 128, 129, 256, 384, 512)] + [{"iotype": "write-zeroes"}]:
        run.qemu_img("create", "-q", "-f", "qcow2", path, "1M")
        options = {"driver": fmt, "size": 4 * MB, **more, "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": "f"},
                   "inject-error": [{"event": "none", "errno": 5, **rule}]}}
        error = job(client, "blockdev-create", options=options)
        begins = open(path, "rb").read(512)
        if error:
            failed += 1
            assert "f: cannot " in error, error
            assert ("could not be wiped" in error) == (rule["iotype"] == "flush"), (rule, error)
            assert begins == b"" or begins == bytes(512), (rule, begins)
            assert os.stat(path).st_size == 0, rule
        else:
            assert info(path, fmt)["virtual-size"] == 4 * MB, rule
        assert client.ask("query-named-block-nodes")["return"] == []
    assert failed >= {"qcow2": 5, "qed": 2, "luks": 2}[fmt]


def test_cancel(start):
    """FEATURES 9.018: a creation that takes long can be paused and cancelled; the file is empty then"""
    daemon, client = begin(start, False)
    assert client.ask("object-add", qom_type="throttle-group", id="g", limits={"bps-write": MB}) == {"return": {}}
    add_file(client, "f", "f")
    assert client.ask("blockdev-add", driver="throttle", node_name="slow", throttle_group="g", file="f") == {"return": {}}
    assert client.ask("blockdev-create", job_id="j", options={"driver": "qcow2", "file": "slow", "size": 64 * MB, "preallocation": "full"}) == {"return": {}}
    time.sleep(0.3)
    assert client.ask("blockdev-del", node_name="slow")["error"]
    assert client.ask("job-cancel", id="j") == {"return": {}}
    end = time.monotonic() + 30                                                 # of 64
    while (found := client.ask("query-jobs")["return"][0])["status"] != "concluded":
        assert time.monotonic() < end, found
        time.sleep(0.02)
    assert "error" in found and os.stat(f"{daemon.folder}/f").st_size == 0
    assert client.ask("job-dismiss", id="j") == {"return": {}}
    assert client.ask("blockdev-del", node_name="slow") == {"return": {}}


@pytest.mark.parametrize("fmt", ["luks", "qcow2"])
def test_amend(start, fmt):
    """FEATURES 8.012, 9.018, 1.074: key slots of an image in use, by both in turn; what the one changes the other reads"""
    given = {"key-secret": "s", "iter-time": 10}
    node = {"key-secret": "s"} if fmt == "luks" else {"encrypt": {"format": "luks", "key-secret": "s"}}
    daemon, client = begin(start, False)
    add_file(client, "f", "f")
    assert create(client, driver=fmt, file="f", size=MB, **(given if fmt == "luks" else {"encrypt": {"format": "luks", **given}})) is None
    assert client.ask("blockdev-add", driver=fmt, node_name="n", file="f", **node) == {"return": {}}

    def amend(force=False, **change):
        options = {"driver": fmt, **change} if fmt == "luks" else {"driver": fmt, "encrypt": {"format": "luks", **change}}
        return job(client, "x-blockdev-amend", node_name="n", options=options, force=force)

    assert amend(**{"state": "active", "new-secret": "t", "iter-time": 10}) is None
    assert "new-secret" in amend(state="active")
    assert "9" in amend(state="inactive", keyslot=9)
    assert "nobody" in amend(**{"state": "active", "new-secret": "nobody"})
    assert amend(**{"state": "inactive", "old-secret": "s"}) is None
    assert amend(**{"state": "inactive", "old-secret": "t"})                     # the last one
    odd = client.ask("x-blockdev-amend", job_id="j", node_name="n", options={"driver": "luks" if fmt == "qcow2" else "qcow2", **({"state": "inactive"} if fmt == "qcow2" else {})})
    assert odd["error"]["class"] == "GenericError" and "driver" in odd["error"]["desc"]
    assert client.ask("x-blockdev-amend", job_id="j", node_name="f", options={"driver": "raw"})["error"]
    assert client.ask("x-blockdev-amend", job_id="j", node_name="zz", options={"driver": "qcow2"})["error"]
    assert daemon.stop()[0] == 0
    path = f"{daemon.folder}/f"
    slots = json.loads(run.qemu_img("info", "--output=json", path, "-f", fmt).out)["format-specific"]["data"]
    slots = slots["slots"] if fmt == "luks" else slots["encrypt"]["slots"]
    assert [s["active"] for s in slots] == [False, True] + [False] * 6
    key = "key-secret" if fmt == "luks" else "encrypt.key-secret"
    run.byre("io", *SECRET_WORDS, "--image-opts", f"driver={fmt},{key}=t,file.filename={path}", "-c", "write -P 9 0 64k")
    run.run("qemu-io", *SECRET_WORDS, "--image-opts", f"driver={fmt},{key}=t,file.filename={path}", "-c", "read -P 9 0 64k")
    wrong = run.run("qemu-io", *SECRET_WORDS, "--image-opts", f"driver={fmt},{key}=s,file.filename={path}", "-c", "read 0 64k", code=None)
    assert "nvalid password" in wrong.err + wrong.out
    theirs, client = begin(start, True)                                         # the peer goes on with what we have left
    file = {"driver": "file", "filename": path}
    again = {"key-secret": "t"} if fmt == "luks" else {"encrypt": {"format": "luks", "key-secret": "t"}}
    assert client.ask("blockdev-add", driver=fmt, node_name="n", file=file, **again) == {"return": {}}
    assert "9" in amend(state="inactive", keyslot=9)
    assert theirs.stop()[0] == 0


def test_amend_keeps_its_node(start, tmp_path):
    """FEATURES 9.018: an image stays open while its key slots are changed, also when the filter goes that was all that kept it"""
    run.byre("create", "-q", *SECRET_WORDS, "-f", "luks", "-o", "key-secret=s,iter-time=50,size=1M", tmp_path / "disk")
    daemon, client = begin(start, False)
    assert client.ask("object-add", qom_type="throttle-group", id="g") == {"return": {}}
    inner = {"driver": "luks", "node-name": "n", "key-secret": "s", "file": {"driver": "file", "filename": str(tmp_path / "disk")}}
    assert client.ask("blockdev-add", driver="throttle", node_name="f", throttle_group="g", file=inner) == {"return": {}}
    change = {"driver": "luks", "state": "active", "new-secret": "t", "iter-time": 1000}
    assert client.ask("x-blockdev-amend", job_id="j", node_name="n", options=change) == {"return": {}}
    assert client.ask("blockdev-del", node_name="f") == {"return": {}}
    end = time.monotonic() + 100                                                # a second of a processor, which others may use
    while (found := client.ask("query-jobs")["return"])[0]["status"] != "concluded":
        assert time.monotonic() < end, found
        time.sleep(0.01)
    assert "error" not in found[0]
    assert client.ask("query-named-block-nodes")["return"] == []
    client.close()
    assert daemon.stop()[0] == 0
    slots = json.loads(run.qemu_img("info", "--output=json", "-f", "luks", tmp_path / "disk").out)["format-specific"]["data"]["slots"]
    assert [s["active"] for s in slots[:3]] == [True, True, False]

# SPDX-License-Identifier: MIT
"""Encrypted images: byre and the peer on each other's, over ciphers, generators, hashes and cluster sizes."""
import os
import random

import pytest
from guest import Guest, seed_of
from lib import images, peers, run

SECRET = ["--object", "secret,id=s,data=hunter2"]
MIB = 1 << 20


def opts(path, fmt="qcow2", secret="s", **more):
    """--image-opts of an encrypted image."""
    key = "encrypt.key-secret" if fmt == "qcow2" else "key-secret"
    words = [f"driver={fmt}"] + ([f"{key}={secret}"] if secret else []) + [f"{k}={v}" for k, v in more.items()]
    return ",".join(words + [f"file.filename={path}"])


def img(tool, command, *words, secrets=SECRET, code=0, **kwargs):
    """qemu-img or byre. The peer measures its own speed before it makes a header, and often fails at that: again then."""
    for _ in range(40):
        done = (run.byre if tool == "byre" else run.qemu_img)(command, *secrets, *words, code=None, **kwargs)
        if "accurate CPU usage" not in done.err:
            break
    if code is not None and done.code not in ((code,) if isinstance(code, int) else code):
        raise run.Failed(f"expected exit code {code}\n{done}")
    return done


def io(tool, image, *commands, options=(), secrets=SECRET):
    """Commands of qemu-io on --image-opts; every one must succeed."""
    args = [run.BYRE, "io"] if tool == "byre" else [peers.need("qemu-io")]
    args += ["-d", "unmap", *secrets, *options]
    for command in commands:
        args += ["-c", command]
    done = run.run(*args, "--image-opts", image)
    for line in done.out.splitlines():
        if "failed" in line or "Pattern verification" in line:
            raise run.Failed(f"{line}\n{done}")
    return done


def create(tool, path, size, fmt="qcow2", backing=None, code=0, secret="s", **options):
    """An encrypted image with few iterations."""
    prefix = "encrypt." if fmt == "qcow2" else ""
    words = {f"{prefix}{k.replace('_', '-')}": v for k, v in options.items() if k.split("_")[0] in ("cipher", "ivgen", "hash")}
    words.update({k: v for k, v in options.items() if k.split("_")[0] not in ("cipher", "ivgen", "hash")})
    words.update({f"{prefix}key-secret": secret, f"{prefix}iter-time": 10})
    if fmt == "qcow2":
        words["encrypt.format"] = "luks"
    args = ["-q", "-f", fmt] + (["-b", str(backing[0]), "-F", backing[1]] if backing else [])
    args += ["-o", ",".join(f"{k}={str(v).replace(',', ',,')}" for k, v in words.items()), path] + ([size] if size else [])
    img(tool, "create", *args, code=code)
    return path


def raw_of(tool, image, folder, secrets=SECRET):
    out = os.path.join(folder, f"{tool}.raw")
    img(tool, "convert", "--image-opts", image, "-O", "raw", out, secrets=secrets)
    with open(out, "rb") as f:
        return f.read()


def judge(disk, path, folder, fmt="qcow2", **more):
    """Both tools see what the model holds, and both find the image sound."""
    image = opts(path, fmt, **more)
    for tool in ("byre", "qemu"):
        have = raw_of(tool, image, folder)
        assert len(have) == disk.size
        if have != disk.shadow:
            disk.verify(lambda off, length: have[off:off + length])
    img("byre", "compare", "--image-opts", image, image)
    if fmt == "qcow2":
        img("qemu", "check", "--image-opts", image)
        run.byre("check", path)                  # metadata needs no secret


# cipher, mode, generator, its hash, hash. What the peer cannot do (keys of 192 bits but for aes-xts, 64-bit blocks in xts) is left out.
SUITES = [
    ("aes-256", "xts", "plain64", None, "sha256"),
    ("aes-128", "xts", "plain", None, "sha1"),
    ("aes-128", "cbc", "plain64", None, "sha512"),
    ("aes-256", "cbc", "essiv", "sha256", "sha384"),
    ("aes-256", "ctr", "plain64", None, "sha256"),
    ("aes-256", "ecb", "plain64", None, "sha256"),
    ("serpent-256", "xts", "plain64", None, "sha512"),
    ("serpent-128", "cbc", "plain", None, "ripemd160"),
    ("twofish-256", "xts", "plain", None, "sha224"),
    ("twofish-128", "cbc", "essiv", "md5", "sha256"),
    ("cast5-128", "cbc", "plain64", None, "md5"),
]


def suite_options(suite):
    names = ("cipher_alg", "cipher_mode", "ivgen_alg", "ivgen_hash_alg", "hash_alg")
    return {k: v for k, v in zip(names, suite) if v}


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: "-".join(map(str, s)))
def test_suites_both_ways(tmp_path, suite):
    """FEATURES 1.005, 1.020, 1.070, 1.071, 1.075, 3.062: each tool makes an image, the other writes to it, both read the same"""
    turn = SUITES.index(suite) % 2
    for maker, other, fmt in (("byre", "qemu", ("qcow2", "luks")[turn]), ("qemu", "byre", ("luks", "qcow2")[turn])):
        path = create(maker, tmp_path / f"{maker}.img", "2M", fmt, **suite_options(suite))
        image = opts(path, fmt)
        io(maker, image, "write -P 0x11 0 600k", "write -P 0x22 1234567 4321")
        io(other, image, "read -P 0x11 0 600k", "read -P 0x22 1234567 4321", "write -P 0x33 100 1000", "write -P 0x44 1M 3k")
        io(maker, image, "read -P 0x11 0 100", "read -P 0x33 100 1000", "read -P 0x11 1100 613300", "read -P 0x44 1M 3k")
        ours, theirs = (raw_of(tool, image, tmp_path) for tool in ("byre", "qemu"))
        assert ours == theirs
        plain = bytes([0x11]) * 64
        assert suite[1] == "ecb" or plain not in path.read_bytes()


@pytest.mark.parametrize("cluster_size,version", [(512, "1.1"), (4096, "0.10"), (65536, "1.1"), (1 << 20, "1.1")])
def test_writers_take_turns(tmp_path, cluster_size, version):
    """FEATURES 1.070, 1.075: random requests of any size by both tools in turns"""
    seed = seed_of("turns", cluster_size, version)
    tools = ("byre", "qemu") if seed & 1 else ("qemu", "byre")
    disk = Guest(seed, max(3 << 19, 6 * cluster_size) + 1536, cluster_size, version=2 if version == "0.10" else 3)
    path = create(tools[0], tmp_path / "disk.qcow2", disk.size, cluster_size=cluster_size, compat=version)
    for turn in range(4):
        for commands in disk.batches(30, 30):
            io(tools[turn % 2], opts(path), *commands)
    judge(disk, path, tmp_path)


def test_luks_writers_take_turns(tmp_path):
    """FEATURES 3.062: the same for the format luks; a discard changes nothing there"""
    disk = Guest(5, 3 << 19, 512, weights={"discard": 0})
    path = create("byre", tmp_path / "disk.luks", disk.size, "luks", preallocation="full")
    for turn in range(4):
        for commands in disk.batches(30, 30):
            io(("qemu", "byre")[turn % 2], opts(path, "luks"), *commands)
    judge(disk, path, tmp_path, "luks")


@pytest.mark.parametrize("fmt", ["qcow2", "luks"])
@pytest.mark.parametrize("maker", ["byre", "qemu"])
def test_info_is_the_peers(tmp_path, maker, fmt):
    """FEATURES 1.073, 1.146: info needs no secret and says the same"""
    path = create(maker, tmp_path / "x.img", "1M", fmt, cipher_alg="aes-256", cipher_mode="cbc", ivgen_alg="essiv")
    ours, theirs = run.byre("info", path), run.qemu_img("info", path)
    assert ours.out == theirs.out
    ours, theirs = (p("info", "--output=json", path).json for p in (run.byre, run.qemu_img))
    assert ours == theirs
    assert list(ours["format-specific"]["data"]) == list(theirs["format-specific"]["data"])


@pytest.mark.parametrize("fmt", ["qcow2", "luks"])
def test_without_the_secret(tmp_path, fmt):
    """FEATURES 1.073: what needs no guest data works without; everything else is refused and changes nothing"""
    path = create("byre", tmp_path / "x.img", "1M", fmt)
    before = path.read_bytes()
    run.byre("info", path)
    run.byre("measure", "-O", "raw", path)
    if fmt == "qcow2":
        run.byre("check", path)
    wrong = ["--object", "secret,id=s,data=wrong"]
    for secrets, image in ((wrong, opts(path, fmt)), (SECRET, opts(path, fmt, secret="other")), (SECRET, opts(path, fmt, secret=None))):
        for words in (["convert", "-O", "raw"], ["dd"], ["bench"], ["resize"], ["compare"]):
            tail = {"convert": [tmp_path / "out"], "resize": ["2M"], "compare": [image]}.get(words[0], [])
            if words[0] == "dd":
                continue
            done = run.byre(*words, *secrets, "--image-opts", image, *tail, code=(1, 2))
            assert "secret" in done.err or "passphrase" in done.err, done
            assert "hunter2" not in done.err and "wrong" not in done.err
        run.byre("io", *secrets, "-c", "write 0 512", "--image-opts", image, code=1)
    assert path.read_bytes() == before and not (tmp_path / "out").exists()


def test_mixed_chain(tmp_path):
    """FEATURES 1.076: each layer has its own secret, or none; named by the overlay or by the opener"""
    secrets = SECRET + ["--object", "secret,id=t,data=other"]
    base = images.raw_file(tmp_path / "base.raw", 2 * MIB, [(0, b"b" * MIB)])
    mid = create("byre", tmp_path / "mid.qcow2", None, backing=(base, "raw"))
    io("byre", opts(mid), "write -P 1 256k 64k")
    name = 'json:{"driver": "qcow2", "encrypt.key-secret": "s", "file": {"driver": "file", "filename": "%s"}}' % mid
    for tool in ("byre", "qemu"):
        top = tmp_path / f"{tool}.qcow2"
        words = "encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=10"
        img(tool, "create", "-q", "-f", "qcow2", "-o", words, "-b", name, "-F", "qcow2", top, secrets=secrets)
        image = opts(top, secret="t")
        io("byre", image, "read -P 98 0 256k", "read -P 1 256k 64k", "write -P 2 300k 7000", "read -P 1 256k 44k", "read -P 2 300k 7000", secrets=secrets)
        io("qemu", image, "read -P 98 0 256k", "read -P 1 256k 44k", "read -P 2 300k 7000", "write -P 3 1M 64k", secrets=secrets)
        assert raw_of("byre", image, tmp_path, secrets) == raw_of("qemu", image, tmp_path, secrets)
        run.byre("io", *secrets[2:], "-c", "read 0 512", "--image-opts", image, code=1)
    # the overlay says nothing: whoever opens it does
    top = tmp_path / "plain.qcow2"
    run.byre("create", "-q", *secrets, "-u", "-f", "qcow2", "-b", mid, "-F", "qcow2", top, "2M")
    for tool in ("byre", "qemu"):
        io(tool, f"driver=qcow2,backing.encrypt.key-secret=s,file.filename={top}", "read -P 1 256k 64k", "read -P 98 320k 64k")
    run.byre("io", *SECRET, "-c", "read 0 512", top, code=1)


def test_convert_in_and_out(tmp_path):
    """FEATURES 1.070, 1.077, 3.062, 5.032: between plain, luks and qcow2 with LUKS; compressed and encrypted exclude each other"""
    data = random.Random(3).randbytes(700000)
    images.raw_file(tmp_path / "a.raw", 3 * MIB, [(0, data), (2 * MIB, b"x" * 5000)])
    key = ["-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"]
    img("byre", "convert", "-O", "qcow2", *key, tmp_path / "a.raw", tmp_path / "b.qcow2")
    img("byre", "convert", "--image-opts", opts(tmp_path / "b.qcow2"), "-O", "luks", "-o", "key-secret=s,iter-time=10", tmp_path / "c.luks")
    img("byre", "convert", "--image-opts", opts(tmp_path / "c.luks", "luks"), "-O", "qcow2", *key, tmp_path / "d.qcow2")
    for tool in ("byre", "qemu"):
        for path, fmt in (("b.qcow2", "qcow2"), ("c.luks", "luks"), ("d.qcow2", "qcow2")):
            img(tool, "compare", "--image-opts", opts(tmp_path / path, fmt), f"driver=raw,file.filename={tmp_path / 'a.raw'}")
    done = img("byre", "convert", "-c", "-O", "qcow2", *key, tmp_path / "a.raw", tmp_path / "e.qcow2", code=1)
    assert "ncrypt" in done.err and not (tmp_path / "e.qcow2").exists()
    img("byre", "io", "-c", "write -c 0 64k", "--image-opts", opts(tmp_path / "b.qcow2"), code=1)
    img("qemu", "compare", "--image-opts", opts(tmp_path / "b.qcow2"), opts(tmp_path / "d.qcow2"))


def test_legacy_aes_is_read(tmp_path):
    """FEATURES 1.005, 1.069, G.083: AES of the old kind is read with a warning, never written"""
    path = tmp_path / "old.qcow2"
    img("qemu", "create", "-q", "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k", path, "1M")
    io("qemu", opts(path), "write -P 1 0 10000", "write -P 2 500k 65k", "write -P 3 1000k 24k")
    done = io("byre", opts(path), "read -P 1 0 10000", "read -P 0 10000 100000", "read -P 2 500k 65k", "read -P 1 777 5000", options=["-r"])
    assert "warning" in done.err and "easy to break" in done.err
    assert raw_of("byre", opts(path), tmp_path) == raw_of("qemu", opts(path), tmp_path)
    before = path.read_bytes()
    done = run.byre("io", *SECRET, "-c", "write 0 512", "--image-opts", opts(path), code=1)
    assert "can only be read" in done.err and path.read_bytes() == before
    assert run.byre("info", path).out == run.qemu_img("info", path).out
    run.byre("check", path)
    for option in ("encrypt.format=aes,encrypt.key-secret=s", "encryption=on,encrypt.key-secret=s"):
        done = run.byre("create", *SECRET, "-f", "qcow2", "-o", option, tmp_path / "new", "1M", code=1)     # FEATURES G.083
        assert "use 'luks'" in done.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocated_reads_zeros(tmp_path, mode):
    """FEATURES 1.071: space that was never written is no ciphertext, and reads zeros all the same"""
    path = create("byre", tmp_path / "x.qcow2", "1M", preallocation=mode)
    for at, tool in ((500, "byre"), (300, "qemu")):
        io(tool, opts(path), f"read -P 0 0 {at}k", f"read -P 0 {at}k 150k", f"write -P 4 {at}k 1000", f"read -P 0 {at + 1}k 100k")
    img("byre", "resize", "--image-opts", f"--preallocation={mode}", opts(path), "2M")
    for tool in ("byre", "qemu"):
        io(tool, opts(path), "read -P 0 1M 1M", "read -P 4 300k 1000", "read -P 4 500k 1000")
        img(tool, "check", "--image-opts", opts(path))


@pytest.mark.parametrize("fmt", ["qcow2", "luks"])
def test_measure(tmp_path, fmt):
    """FEATURES 1.145, 5.056: the peer's numbers, with the LUKS header counted"""
    for extra in ("", ",cluster_size=4k", ",cluster_size=2M", ",cipher-alg=aes-128", ",cipher-mode=cbc"):
        if fmt == "qcow2":
            words = "encrypt.format=luks,encrypt.key-secret=s" + extra.replace(",cipher", ",encrypt.cipher")
        elif "cluster" in extra:
            continue
        else:
            words = "key-secret=s" + extra
        ours, theirs = (img(tool, "measure", "--output=json", "-O", fmt, "-o", words, "--size", "100M").json for tool in ("byre", "qemu"))
        assert ours == theirs, words


def test_cryptsetup(tmp_path):
    """FEATURES 3.062: the tool that LUKS comes from reads our header, and we the key slots that it adds"""
    cryptsetup = peers.need("cryptsetup")
    path = create("byre", tmp_path / "x.luks", "1M", "luks", hash_alg="sha512")
    (tmp_path / "one").write_bytes(b"hunter2")
    (tmp_path / "two").write_bytes(b"another one")
    run.run(cryptsetup, "open", "--test-passphrase", "--key-file", tmp_path / "one", path)
    run.run(cryptsetup, "open", "--test-passphrase", "--key-file", tmp_path / "two", path, code=2)
    dump = run.run(cryptsetup, "luksDump", path).out
    assert "Key Slot 0: ENABLED" in dump and "xts-plain64" in dump
    io("byre", opts(path, "luks"), "write -P 9 0 1M")
    run.run(cryptsetup, "luksAddKey", "--pbkdf-force-iterations", "1000", "--key-file", tmp_path / "one", path, tmp_path / "two")
    io("byre", opts(path, "luks"), "read -P 9 0 1M", secrets=["--object", "secret,id=s,data=another one"])
    run.run(cryptsetup, "luksRemoveKey", path, tmp_path / "one")
    run.byre("io", *SECRET, "-c", "read 0 512", "--image-opts", opts(path, "luks"), code=1)
    made = tmp_path / "theirs.luks"
    images.raw_file(made, 4 * MIB)
    run.run(cryptsetup, "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", tmp_path / "one", made)
    io("byre", opts(made, "luks"), "write -P 7 0 64k", "read -P 7 0 64k")
    io("qemu", opts(made, "luks"), "read -P 7 0 64k")


def test_external_data_file(tmp_path):
    """FEATURES 1.078 with 1.070: guest data encrypted in a file of its own, as the peer makes it"""
    path = create("qemu", tmp_path / "x.qcow2", "2M", data_file=tmp_path / "x.data")
    io("qemu", opts(path), "write -P 1 0 100k")
    io("byre", opts(path), "read -P 1 0 100k", "write -P 2 1M 70000", "write -P 3 50k 100", "read -P 0 200k 100k")
    io("qemu", opts(path), "read -P 2 1M 70000", "read -P 3 50k 100", "read -P 0 200k 100k")
    assert raw_of("byre", opts(path), tmp_path) == raw_of("qemu", opts(path), tmp_path)
    assert b"\1" * 64 not in (tmp_path / "x.data").read_bytes()


def keys(fmt, words):
    return ",".join(("encrypt." if fmt == "qcow2" else "") + w for w in words.split(","))


THREE = SECRET + ["--object", "secret,id=n,data=new one", "--object", "secret,id=w,data=wrong"]


def active_slots(path=None, head=None, disk=None):
    words = ["--image-opts", apart(head, disk)] if head else [path]
    data = run.byre("info", "--output=json", *words).json["format-specific"]["data"]
    return [i for i, s in enumerate(data.get("encrypt", data)["slots"]) if s["active"]]


@pytest.mark.parametrize("fmt", ["qcow2", "luks"])
def test_amend_key_slots(tmp_path, fmt):
    """FEATURES 1.074, 1.141: added and erased as the peer does it, with its refusals; each tool opens with the other's slots"""
    path = create("byre", tmp_path / "x.img", "1M", fmt)
    io("byre", opts(path, fmt), "write -P 5 0 1M")
    new = opts(path, fmt, secret="n")

    def amend(words, *options, tool="byre", code=0):
        return img(tool, "amend", *options, "-o", keys(fmt, words), "--image-opts", opts(path, fmt), secrets=THREE, code=code)

    for tool in ("byre", "qemu"):
        amend("state=active,new-secret=n,iter-time=10", tool=tool)
    assert active_slots(path) == [0, 1, 2]
    for tool in ("byre", "qemu"):
        io(tool, new, "read -P 5 0 1M", secrets=THREE)
    amend("state=active,new-secret=n,keyslot=6,iter-time=10")
    assert active_slots(path) == [0, 1, 2, 6]
    refused = ["state=active,new-secret=n,keyslot=6,iter-time=100", "state=active", "state=inactive", "state=inactive,new-secret=n", "new-secret=n", "state=foo",
               "state=inactive,iter-time=5,keyslot=1", "state=inactive,keyslot=9", "state=inactive,keyslot=3", "state=inactive,old-secret=w", "keyslot=1",
               "state=inactive,old-secret=n,keyslot=0", "state=active,old-secret=s,new-secret=n,iter-time=100", "state=active,new-secret=nobody", "iter-time=100"]
    before = path.read_bytes()
    for words in refused:
        for tool in ("byre", "qemu"):
            done = amend(words, tool=tool, code=1)
            assert done.err and "new one" not in done.err
    assert path.read_bytes() == before
    amend("state=active,new-secret=w,keyslot=6,iter-time=10", "--force")
    io("qemu", opts(path, fmt, secret="w"), "read -P 5 0 1M", secrets=THREE)
    amend("state=inactive,old-secret=n")
    amend("state=inactive,keyslot=6", tool="qemu")
    assert active_slots(path) == [0]
    img("byre", "io", "-c", "read 0 512", "--image-opts", new, secrets=THREE, code=1)
    for words in ("state=inactive,keyslot=0", "state=inactive,old-secret=s"):
        assert "lost" in amend(words, code=1).err
    assert active_slots(path) == [0]
    io("qemu", opts(path, fmt), "read -P 5 0 1M")
    amend("state=inactive,keyslot=0", "--force")
    assert active_slots(path) == []
    img("byre", "io", "-c", "read 0 512", "--image-opts", opts(path, fmt), code=1)
    if fmt == "qcow2":
        run.byre("check", path)


def test_amend_help_and_plain_images(tmp_path):
    """FEATURES 1.074: the options are those of the peer; an image without encryption has no key slots"""
    for fmt in ("qcow2", "luks"):
        ours, theirs = ({line.split("=")[0].strip() for line in p("amend", "-f", fmt, "-o", "help").out.splitlines() if "=" in line}
                        for p in (run.byre, run.qemu_img))
        assert ours == theirs
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    done = img("byre", "amend", "-f", "qcow2", "-o", "encrypt.state=active,encrypt.new-secret=s", tmp_path / "x", code=1)
    assert "not encrypted" in done.err


# ---- a header in a file of its own ----

def apart(header, disk, secret="s"):
    """--image-opts of a disk whose header is elsewhere."""
    return f"driver=luks,key-secret={secret},header.driver=file,header.filename={header},file.filename={disk}"


def joined(header, disk, path):
    """The same disk as one file, for programs that know no detached headers: the payload begins behind the header then."""
    head = bytearray(header.read_bytes())
    head += bytes(-len(head) % 512)
    head[104:108] = (len(head) // 512).to_bytes(4, "big")
    path.write_bytes(head + disk.read_bytes())
    return path


def plain(path, text):
    path.write_bytes(text)
    return path


@pytest.fixture
def passes(tmp_path):
    return plain(tmp_path / "one", b"hunter2"), plain(tmp_path / "two", b"new one")


def test_detached_header_is_made(tmp_path, passes):
    """FEATURES 3.062: create makes a header alone, cryptsetup opens it and adds a key to it, and what lies in the disk is what it would be in one file"""
    cryptsetup = peers.need("cryptsetup")
    one, two = passes
    head, disk = tmp_path / "head", images.raw_file(tmp_path / "disk", 3 * MIB)
    done = img("byre", "create", "-f", "luks", "-o", "detached-header=on,key-secret=s,iter-time=10,cipher-alg=aes-128", head)
    assert "detached-header=on" in done.out
    assert head.stat().st_size < 2 * MIB
    dump = run.run(cryptsetup, "luksDump", head).out
    assert "Payload offset:\t0\n" in dump and "Key Slot 0: ENABLED" in dump
    run.run(cryptsetup, "open", "--test-passphrase", "--header", head, "--key-file", one, disk)
    io("byre", apart(head, disk), "write -P 1 0 3M", "write -P 2 1234567 7000", "read -P 1 0 1234567")
    before = head.read_bytes()
    io("qemu", opts(joined(head, disk, tmp_path / "whole"), "luks"), "read -P 1 0 1234567", "read -P 2 1234567 7000", "read -P 1 1241567 1904161")
    assert head.read_bytes() == before and bytes([1]) * 64 not in disk.read_bytes()
    run.run(cryptsetup, "luksAddKey", "--pbkdf-force-iterations", "1000", "--key-file", one, head, two)
    io("byre", apart(head, disk, "n"), "read -P 2 1234567 7000", secrets=THREE)
    assert active_slots(head=head, disk=disk) == [0, 1]


def test_detached_header_of_cryptsetup(tmp_path, passes):
    """FEATURES 3.062: a header that cryptsetup makes or takes from a disk opens it; the backup of a header also when the disk's own is gone"""
    cryptsetup = peers.need("cryptsetup")
    one, _ = passes
    head, disk = tmp_path / "head", images.raw_file(tmp_path / "disk", 3 * MIB)
    run.run(cryptsetup, "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--header", head, "--key-file", one, disk)
    io("byre", apart(head, disk), "write -P 4 1M 1M", "read -P 4 1M 1M")
    io("qemu", opts(joined(head, disk, tmp_path / "whole"), "luks"), "read -P 4 1M 1M")
    whole, backup = create("qemu", tmp_path / "whole.luks", "2M", "luks"), tmp_path / "backup"
    io("qemu", opts(whole, "luks"), "write -P 5 0 2M")
    run.run(cryptsetup, "luksHeaderBackup", whole, "--header-backup-file", backup)
    with open(whole, "r+b") as f:
        f.write(bytes(1 << 20))
    img("byre", "io", "-c", "read 0 512", "--image-opts", opts(whole, "luks"), code=1)
    io("byre", apart(backup, whole), "read -P 5 0 2M", "write -P 6 100 5000")
    with open(whole, "r+b") as f:
        f.write(backup.read_bytes())
    io("qemu", opts(whole, "luks"), "read -P 5 0 100", "read -P 6 100 5000", "read -P 5 5100 2000000")


def test_detached_header_key_slots(tmp_path, passes):
    """FEATURES 1.074, 3.062: key slots are changed in the header, and the disk is not touched; a header that can only be read leaves the disk writable"""
    cryptsetup = peers.need("cryptsetup")
    one, two = passes
    head, disk = tmp_path / "head", images.raw_file(tmp_path / "disk", 2 * MIB)
    img("byre", "create", "-q", "-f", "luks", "-o", "detached-header=on,key-secret=s,iter-time=10", head)
    io("byre", apart(head, disk), "write -P 1 0 2M")
    before = disk.read_bytes()
    size = head.stat().st_size
    img("byre", "amend", "-o", "state=active,new-secret=n,iter-time=10", "--image-opts", apart(head, disk), secrets=THREE)
    for key in (one, two):
        run.run(cryptsetup, "open", "--test-passphrase", "--header", head, "--key-file", key, disk)
    img("byre", "amend", "-o", "state=inactive,old-secret=s", "--image-opts", apart(head, disk), secrets=THREE)
    run.run(cryptsetup, "open", "--test-passphrase", "--header", head, "--key-file", one, disk, code=2)
    assert active_slots(head=head, disk=disk) == [1]
    assert disk.read_bytes() == before and head.stat().st_size == size
    io("byre", apart(head, disk, "n"), "read -P 1 0 2M", secrets=THREE)
    fixed, held = apart(head, disk, "n") + ",header.read-only=on", head.read_bytes()
    done = img("byre", "amend", "-o", "state=inactive,keyslot=1", "--force", "--image-opts", fixed, secrets=THREE, code=1)
    assert "read-only" in done.err and head.read_bytes() == held
    io("byre", fixed, "write -P 3 4096 4096", "read -P 3 4096 4096", secrets=THREE)
    assert head.read_bytes() == held and disk.read_bytes() != before


def test_detached_header_info(tmp_path):
    """FEATURES 3.062, 1.146: info says that the header is detached, and says nothing of the kind of others"""
    head, disk = tmp_path / "head", images.raw_file(tmp_path / "disk", MIB)
    img("byre", "create", "-q", "-f", "luks", "-o", "detached-header=on,key-secret=s,iter-time=10", head)
    said = run.byre("info", "--output=json", "--image-opts", apart(head, disk)).json
    assert said["virtual-size"] == MIB and said["format"] == "luks"
    assert said["format-specific"]["data"]["detached-header"] is True and said["format-specific"]["data"]["payload-offset"] == 0
    assert "detached header: true" in run.byre("info", "--image-opts", apart(head, disk)).out


def test_detached_header_refusals(tmp_path):
    """FEATURES 3.062: what makes no sense is refused, and changes nothing"""
    head, disk = tmp_path / "head", images.raw_file(tmp_path / "disk", MIB)
    img("byre", "create", "-q", "-f", "luks", "-o", "detached-header=on,key-secret=s,iter-time=10", head)
    img("byre", "create", "-q", "-f", "qcow2", tmp_path / "q", "1M")
    before = {p: p.read_bytes() for p in (head, disk, tmp_path / "q")}
    create("byre", tmp_path / "own", "1M", "luks")
    before[tmp_path / "own"] = (tmp_path / "own").read_bytes()
    bad = [(apart(head, tmp_path / "own"), "a LUKS1 header of its own"), (apart(head, head), "lock"), (apart(disk, head), "no LUKS header"), (apart(tmp_path / "no", disk), "no such file"),
           (f"driver=qcow2,header.driver=file,header.filename={head},file.filename={tmp_path / 'q'}", "'header' is an option of luks images"),
           (f"driver=raw,header.driver=file,header.filename={head},file.filename={disk}", "'header' is an option of luks images"),
           (f"driver=luks,key-secret=s,file.filename={head}", "another file"), (apart(head, disk) + ",data-file.filename=x", "not both"),
           (apart(head, disk, "w"), "opens no key slot")]
    for image, why in bad:
        done = img("byre", "io", "-c", "write 0 4k", "--image-opts", image, secrets=THREE, code=1)
        assert why in done.err, (image, done.err)
    for words, why in ((["convert", "-O", "luks", "-o", "detached-header=on,key-secret=s", disk], "header alone"),
                       (["create", "-f", "luks", "-o", "detached-header=on,key-secret=s,preallocation=full"], "nothing to allocate"),
                       (["create", "-f", "qcow2", "-o", "detached-header=on"], "detached-header")):
        done = img("byre", *words, tmp_path / "new", code=1)
        assert why in done.err and not (tmp_path / "new").exists(), done.err
    for path, text in before.items():
        assert path.read_bytes() == text

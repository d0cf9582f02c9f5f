# SPDX-License-Identifier: MIT
"""The helpers notice what they are there to notice."""
import pytest
import qcow2ref
from lib import images
from lib.corrupt import Editor
from lib.run import Failed, free_port, qemu_io, run
from lib.workload import Workload

MiB = 1 << 20


def written(tmp_path):
    image = images.create(tmp_path / "a.qcow2", 4 * MiB, cluster_size=4096)
    work = Workload(7, 4 * MiB, 4096)
    for batch in work.batches(80, 40):
        qemu_io(image, *batch)
    return image, work


def test_workload_is_reproducible():
    a, b = Workload(3, MiB), Workload(3, MiB)
    assert [a.step() for _ in range(50)] == [b.step() for _ in range(50)]
    assert a.shadow == b.shadow and any(a.shadow)


def test_shadow_notices_one_wrong_byte(tmp_path):
    image, work = written(tmp_path)
    with qcow2ref.open_image(image) as im:
        work.verify(im.read)
        target = next(e for e in im.extents() if e.kind == "data" and not work.unknown[e.off // 512])
    with open(image, "r+b") as f:
        f.seek(target.host)
        f.write(bytes([work.shadow[target.off] ^ 1]))
    with qcow2ref.open_image(image) as im, pytest.raises(AssertionError, match=f"guest offset {target.off:#x}"):
        work.verify(im.read)


def test_assert_sound_notices_a_leak_and_damage(tmp_path):
    image, _ = written(tmp_path)
    images.assert_sound(image)
    with qcow2ref.open_image(image) as im:
        target = next(e for e in im.extents() if e.kind == "data").off // 4096 * 4096
    with Editor(image) as e:
        entry = e.get_be64(e.l2_entry(target))
        e.patch_l2(target, lambda old: 0)
    images.assert_sound(image, leaks=True)
    with pytest.raises(AssertionError, match="1 leaks"):
        images.assert_sound(image)
    with Editor(image) as e:
        e.patch_l2(target, lambda old: entry)
        e.set_refcount(e.host_of(target), 0)
    with pytest.raises(AssertionError, match="refcount-low"):
        images.assert_sound(image, leaks=True)


def test_run(tmp_path):
    assert run("sh", "-c", "echo out; exit 3", code=3).out == "out\n"
    with pytest.raises(Failed, match="expected exit code 0"):
        run("false")
    with pytest.raises(Failed, match="still running"):
        run("sleep", 30, timeout=0.2)
    with pytest.raises(Failed):
        image = images.create(tmp_path / "a.qcow2", MiB)
        qemu_io(image, "read -P 1 0 512")
    assert 1024 <= free_port() <= 65535


@pytest.mark.parametrize("bits", images.REFCOUNT_BITS)
def test_set_refcount_touches_one_cluster(tmp_path, bits):
    image = images.create(tmp_path / "a.qcow2", MiB, cluster_size=4096, refcount_bits=bits)
    qemu_io(image, "write 0 64k")
    with Editor(image) as e:
        host = e.host_of(4096)
        before = [e.image.refcount(host // 4096 + i) for i in (-1, 0, 1)]
        e.set_refcount(host, 0)
        e.reload()
        after = [e.image.refcount(host // 4096 + i) for i in (-1, 0, 1)]
    assert before == [1, 1, 1] and after == [1, 0, 1]

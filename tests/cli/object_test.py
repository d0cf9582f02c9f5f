# SPDX-License-Identifier: MIT
"""--object: which mistake of a definition is told, where there are several (FEATURES 3.021, 3.072 to 3.075, 5.002)."""
import subprocess

import pytest
from lib import peers, run

# definition, with an object "taken" in front: what both programs complain of
TOLD = {
    "gadget,id=s,colour=red": "gadget",
    "gadget,colour=red": "gadget",
    '{"qom-type": "gadget", "colour": "red"}': "gadget",
    "secret,colour=red": "id",
    "secret,id=1a,colour=red": "colour",
    "secret,id=taken,colour=red": "colour",
    "secret,id=taken": "taken",
    "secret,id=taken,file=missing": "taken",
    "secret,id=s,data=x,file=y,colour=red": "colour",
    '{"qom-type": "secret", "data": "x", "colour": 3}': "id",
    "throttle-group,limits.iops-total=1": "id",
    "authz-simple,identity=x": "id",
    "pr-manager-helper,path=/nowhere/s": "id",
    "pr-manager-helper,id=p,colour=red": "'path' is missing",
    "pr-manager-helper,id=p,path=/nowhere/s,colour=red": "colour",
    "pr-manager-helper,id=taken,path=/nowhere/s": "taken",
    "pr-manager-helper,id=p,path=/nowhere/s": "Failed to connect to '/nowhere/s': No such file",
}


@pytest.mark.parametrize("words", TOLD)
def test_first_mistake(tmp_path, words):
    """FEATURES 5.002: the same of several mistakes as the peer"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "a", "1M")
    for program in (run.BYRE, peers.need("qemu-img")):
        done = subprocess.run([program, "info", "--object", "secret,id=taken,data=x", "--object", words, "-f", "raw", "a"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and TOLD[words] in done.stderr, done.stderr


@pytest.mark.parametrize("words", ["throttle-group,id=g,limits.iops-total=5", '{"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 5}}',
                                   "authz-list,id=g,rules.0.match=a,rules.0.policy=allow",
                                   '{"qom-type": "authz-list", "id": "g", "rules": [{"match": "a", "policy": "allow"}]}',
                                   "secret,id=g,data=throttle-group", "secret,id=g,data=qom-type=authz-simple"])
def test_types_by_their_word(tmp_path, words):
    """FEATURES 3.072, 3.074, 3.075: lists and JSON say the same; what a value says makes no other type of an object"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "a", "1M")
    run.byre("info", "--object", words, "-f", "raw", "a", cwd=tmp_path)
    assert "already" in run.byre("info", "--object", words, "--object", "secret,id=g,data=x", "-f", "raw", "a", cwd=tmp_path, code=1).err
    subprocess.run([peers.need("qemu-img"), "info", "--object", words, "-f", "raw", "a"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

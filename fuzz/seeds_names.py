#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target names: names as images record them and users give them. Usage: seeds_names.py [FOLDER]."""
import json
import pathlib
import sys

USER, STRICT, IMAGE, STRICT_IMAGE = range(4)


def seed(text, whose=IMAGE):
    return bytes([whose]) + (text if isinstance(text, bytes) else text.encode())


def options(whose=IMAGE, **members):
    return seed("json:" + json.dumps({k.replace("_", "-"): v for k, v in members.items()}), whose)


FILE = {"driver": "file", "filename": "a"}
UNIX = {"type": "unix", "path": "/run/a b"}
SEEDS = {
    "relative": seed("base.raw"), "up": seed("../../x"), "absolute": seed("/a"), "file": seed("file:b:c"), "dot": seed("./a:b"), "empty": seed(""), "strict": seed("nbd://x", STRICT),
    "strict-image": seed("file:a", STRICT_IMAGE), "strict-path": seed("a.img", STRICT_IMAGE), "unknown": seed("abc:d"), "later": seed("https://x/y"), "not-utf8": seed(b"\xff\xfe/\x80"),
    "null": seed("null-co://"), "null-more": seed("null-aio://x"), "fdset": seed("/dev/fdset/1"), "blkdebug": seed("blkdebug:rules:a"), "blkdebug-user": seed("blkdebug::a", USER),
    "nbd": seed("nbd://host:10809/export"), "nbd-old": seed("nbd:unix:/a b:exportname=c"), "nbd-ipv6": seed("nbd://[::1]:1/"), "nbd-ipv6-open": seed("nbd://[::1"),
    "nbd-unix": seed("nbd+unix:///e?socket=/s%20x"), "nbd-vsock": seed("nbd+vsock://2:10809/"), "nbds": seed("nbds://u@h/e?tls-psk-file=/k", USER), "nbds-image": seed("nbds://u@h/e?tls-certificates=/k"),
    "nbd-percent": seed("nbd://h/%2"), "nbd-percent-zero": seed("nbd://h/%00x"), "nbd-port": seed("nbd://h:99999/"), "nbd-query": seed("nbd+unix:///?socket=&socket=/a&&=&x"), "nbd-long": seed("nbd://h/" + "e" * 5000),
    "json": options(driver="qcow2", file=FILE), "json-dots": options(**{"driver": "raw", "file.filename": "a", "file.locking": "off", "read-only": "on"}), "json-null": options(driver="null-co", size="1M"),
    "json-nbd": options(driver="nbd", server=UNIX, export="e", **{"reconnect-delay": 5, "tls-creds": "t"}), "json-nbd-inet": options(driver="raw", file={"driver": "nbd", "host": "::1", "port": 1}),
    "json-nbd-fd": options(USER, driver="nbd", server={"type": "fd", "str": "5"}), "json-nbd-uri": options(driver="nbd", filename="nbds://h?tls-hostname=x"), "json-nests": options(driver="raw", file={"driver": "throttle", "file": FILE}),
    "json-debug": options(driver="raw", file={"driver": "blkdebug", "image": FILE, "inject-error": [{"event": "none"}]}), "json-node": options(driver="qcow2", file="node", **{"data-file": "other"}),
    "json-data": options(**{"driver": "qcow2", "file": FILE, "data-file": {"driver": "file", "filename": "d"}}), "json-header": options(driver="luks", file=FILE, header="h"),
    "json-crypt": options(**{"driver": "qcow2", "file": FILE, "encrypt.key-secret": "s", "backing.backing.encrypt.key-secret": "t", "encrypt.format": "luks"}), "json-backing": options(driver="qcow2", file=FILE, backing=None),
    "json-window": options(driver="raw", file=FILE, offset=512, size="1M"), "json-sizes": options(driver="qcow2", file=FILE, cache_size=1 << 20, l2_cache_size="1k"), "json-unknown": options(driver="raw", file=FILE, more=1),
    "json-deep": seed("json:" + '{"a":' * 9 + "1" + "}" * 9), "json-deep-lists": seed("json:" + "[" * 40), "json-cut": seed('json:{"driver":"ra'), "json-list": seed("json:[1]"), "json-twice": seed('json:{"driver":"raw","driver":"raw"}'),
    "json-long-key": options(**{"file." + "k" * 200: 1}), "json-zero": seed('json:{"driver":"raw","file.filename":"a\\u0000b"}'), "json-empty-name": options(driver="raw", file={"filename": ""}), "json-user": options(USER, driver="qcow2", file=FILE, node_name="n"),
}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus" / "names")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()

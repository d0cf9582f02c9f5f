#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target blkdebug_rules: files of rules. Usage: seeds_blkdebug_rules.py [FOLDER]."""
import pathlib
import sys


def rule(what="inject-error", name="", **members):
    return f"[{what}{name}]\n" + "".join(f'{k} = "{v}"\n' for k, v in members.items())


ONE = rule(event="write_aio", errno="5")
SEEDS = {
    "one": ONE, "two": ONE + rule("set-state", event="l2_load", state="1", new_state="2"), "named": rule(name=' "a name"', event="none", iotype="write", errno="28"),
    "all": rule(event="read_aio", state="1", errno="5", sector="8", once="on", immediately="off", iotype="read"), "comment": "# a comment\n\n" + ONE + "\t# another\n", "crlf": ONE.replace("\n", "\r\n"),
    "no-section": 'event = "none"\n', "section-twice": ONE + "[inject-error]\n", "other-section": "[other]\n", "section-open": "[inject-error\n", "no-quotes": "[inject-error]\nevent = none\n",
    "quote-open": '[inject-error]\nevent = "none\n', "quotes-in": '[inject-error]\nevent = "no"ne"\n', "behind": '[inject-error]\nevent = "none" x\n', "no-name": '[inject-error]\n = "none"\n',
    "unknown": rule(event="none", more="1"), "event": rule(event="no such event"), "errno": rule(event="none", errno="99999"), "errno-canceled": rule(event="none", errno="125"), "negative": rule(event="none", errno="-5"),
    "states": rule("set-state", event="none", state="0", new_state="4294967296"), "state-missing": rule("set-state", event="none"), "sector": rule(event="none", sector="18446744073709551615"),
    "twice": '[inject-error]\nevent = "none"\nevent = "l2_load"\n', "no-end": ONE[:-1], "empty": "", "many": ONE * 300, "long": "[inject-error]\nevent = \"" + "x" * 5000 + "\"\n",
}
BYTES = {"zero": b"[inject-error]\n\0", "not-utf8": b'[inject-error]\nevent = "\xff"\n', "not-utf8-name": b'[inject-error]\n\xff = "1"\n'}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus" / "blkdebug_rules")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**{k: v.encode() for k, v in SEEDS.items()}, **BYTES}.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()

#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""count.py: what one piece of the hot path costs, in instructions, allocations and mutexes.

    bench/micro/count.py [NAME...]           counts and compares with baseline.json
    bench/micro/count.py --write [NAME...]   writes the baseline anew; the commit says why it grew

A piece runs twice, with different numbers of rounds, under callgrind; the difference, divided, is what one round costs. All pieces run in
one process, which callgrind writes down in parts (micro_mark). Only
instructions of byre's own code count: those of the C library differ with its version and with the processor. So no
other program disturbs the figure, and two runs of one build give the same.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BASELINE = os.path.join(HERE, "baseline.json")
FEW, MANY = 256, 1280           # rounds
GROWTH = 1.10                   # what is allowed over the baseline
OTHER_COMPILER = 1.50           # ... when it was counted with another compiler
SLACK = 2.0                     # instructions: a piece of ten may become one of eleven
ALLOCATIONS = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"}
LOCKS = {"pthread_mutex_lock"}


def parse(text, program):
    """Own cost of the lines that belong to the program, and how often it calls what is counted."""
    names, objects = {}, {}
    obj, mine, callee, skip, cost, calls = None, False, None, False, 0, {"allocations": 0, "locks": 0}
    for line in text.splitlines():
        found = re.match(r"(c?fn|c?ob)=\((\d+)\)(?: (.*))?$", line)
        if found:
            key, number, name = found.groups()
            table = objects if key.endswith("ob") else names
            if name is not None:
                table[number] = name
            if key == "ob":
                obj = table[number]
                mine = os.path.basename(obj) == program
            elif key == "cfn":
                callee = table[number]
        elif line.startswith("calls="):
            skip = True                     # the next line is what the callee cost
            bare = re.sub(r"'\d+$|@.*", "", callee or "")
            for what, those in (("allocations", ALLOCATIONS), ("locks", LOCKS)):
                if mine and bare in those:
                    calls[what] += int(line[6:].split()[0])
        elif line and (line[0].isdigit() or line[0] in "+-*"):
            if mine and not skip:
                cost += int(line.split()[1])
            skip = False
    return {"instructions": cost, **calls}


def count(program, names):
    """{name: costs of one round}"""
    with tempfile.TemporaryDirectory() as folder:
        cmd = ["valgrind", "--tool=callgrind", "--dump-before=micro_mark", "--callgrind-out-file=" + os.path.join(folder, "out"),
               program, str(FEW), str(MANY), *names]
        done = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError("%s: exit %d\n%s" % (" ".join(cmd), done.returncode, done.stdout[-2000:]))
        parts = []                      # the first is what comes before all pieces
        for i in range(1, 2 * len(names) + 2):
            with open(os.path.join(folder, "out.%d" % i)) as f:
                parts.append(parse(f.read(), os.path.basename(program)))
    return {name: {k: round((many[k] - few[k]) / (MANY - FEW), 2) for k in few} for name, few, many in zip(names, parts[1::2], parts[2::2])}


def names_of(program):
    out = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.split("\t")[0] for line in out.splitlines()]


def compiler():
    out = subprocess.run(["gcc", "-dumpfullversion"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return "gcc %s %s" % (out.strip(), os.uname().machine)


def read_baseline():
    with open(BASELINE) as f:
        return json.load(f)


def verdict(name, got, baseline, who):
    """None, or what grew and what to do about it."""
    want = baseline["pieces"].get(name)
    if want is None:
        return "%s is not in the baseline: bench/micro/count.py --write %s" % (name, name)
    allowed = GROWTH if who == baseline["compiler"] else OTHER_COMPILER
    most = max(want["instructions"] * allowed, want["instructions"] + SLACK)
    grown = []
    if got["instructions"] > most:
        grown.append("instructions: %.1f, not more than %.1f (baseline %.1f by %s, here %s)" % (
            got["instructions"], most, want["instructions"], baseline["compiler"], who))
    for k in ("allocations", "locks"):
        if got[k] > want[k] + 0.01:
            grown.append("%s: %.2f, baseline %.2f" % (k, got[k], want[k]))
    if not grown:
        return None
    return "%s has become dearer. %s. Make it cheaper, or run `bench/micro/count.py --write %s` and say in the commit why it is worth it" % (
        name, "; ".join(grown), name)


def write(counts, who):
    base = read_baseline() if os.path.exists(BASELINE) else {"pieces": {}}
    base = {"compiler": who, "pieces": {**base["pieces"], **counts}}
    lines = ",\n".join("    %s: %s" % (json.dumps(k), json.dumps(v)) for k, v in base["pieces"].items())
    with open(BASELINE, "w") as f:
        f.write('{\n  "compiler": %s,\n  "pieces": {\n%s\n  }\n}\n' % (json.dumps(who), lines))


def main(argv):
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--program", default=os.path.join(HERE, "..", "..", "build", "bench", "micro"))
    ap.add_argument("--write", action="store_true")
    ap.add_argument("names", nargs="*")
    a = ap.parse_args(argv)
    who, bad = compiler(), 0
    counts = count(a.program, a.names or names_of(a.program))
    for name, got in counts.items():
        line = "%-14s %9.1f instructions, %.2f allocations, %.2f locks" % (name, *got.values())
        why = None if a.write else verdict(name, got, read_baseline(), who)
        print(line + ("   " + why if why else ""))
        bad += why is not None
    if a.write:
        write(counts, who)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

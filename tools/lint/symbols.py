#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""symbols.py: the built archives obey LAYERS, and libraries hold no mutable globals.

For each layer, a symbol that its archives need and that only a layer it may not use defines is a finding: this sees
sideways calls too, which a link test hides when an allowed layer brings the other one along. Objects in .data and
.bss of a library are findings (thread-local ones belong to rt alone); constants with relocations are not.
"""
import collections
import os
import subprocess
import sys

from common import Lint, read

NOT_LIBRARY = {"bin", "sim"}
TOOL_MADE = ("__gcov", "__asan", "__tsan", "__ubsan", "__odr", "_GLOBAL_", "asan.", "__sancov", "__llvm", "__prof")


def load_layers(lint):
    layers = {}
    for line in read(lint.root, "LAYERS").splitlines():
        words = line.split("#")[0].split()
        if words:
            layers[words[0]] = (set(layers) if words[1:] == ["*"] else set(words[1:]) - {"-"}) | {words[0]}
    return layers


def archives(build, layer):
    """Archives made from src/<layer>/ (those of tests have 'test' in their name, and libbyre.a holds the others once more)."""
    found = []
    for here, _, names in os.walk(os.path.join(build, "src", layer)):
        found += [os.path.join(here, n) for n in names if n.endswith(".a") and "test" not in n and n != "libbyre.a"]
    return sorted(found)


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


def symbols(paths):
    """({defined symbol}, {needed symbol: an object that needs it})."""
    defined, needed = set(), {}
    for path in paths:
        member = path
        for line in run("nm", "-g", path).splitlines():
            if line.endswith(":"):
                member = line[:-1]
                continue
            parts = line.split()
            if len(parts) >= 2 and parts[-2] in "Uw":
                needed.setdefault(parts[-1], os.path.basename(member))
            elif len(parts) >= 2:
                defined.add(parts[-1])
    return defined, needed


def check_calls(lint, layers, defined, needed):
    homes = collections.defaultdict(set)
    for layer, names in defined.items():
        for name in names:
            homes[name].add(layer)
    for layer, wants in needed.items():
        for name, where in sorted(wants.items()):
            if homes.get(name) and not homes[name] & layers[layer]:
                lint.finding(f"src/{layer}", 1, f"{where} needs '{name}' of layer {sorted(homes[name])[0]}, which it may not use")


def check_globals(lint, layer, paths):
    for path in paths:
        for line in run("objdump", "-t", path).splitlines():
            parts = line.replace(" .hidden ", " ").split()
            if " O " not in line or len(parts) < 4:
                continue
            name, section = parts[-1], parts[-3]
            if name.startswith(TOOL_MADE):
                continue
            mutable = section == "*COM*" or (section.startswith((".data", ".bss")) and not section.startswith(".data.rel.ro"))
            foreign = section.startswith((".tdata", ".tbss")) and layer != "rt"
            if (mutable or foreign) and not lint.is_allowed(f"src/{layer}:{name.split('.')[0]}"):
                kind = "thread-local" if foreign else "mutable"
                lint.finding(f"src/{layer}", 1, f"{kind} global '{name}' in {section}: libraries have none")


def main():
    build = None
    if "--build" in sys.argv:
        at = sys.argv.index("--build")
        build = sys.argv[at + 1]
        del sys.argv[at:at + 2]
    lint = Lint("symbols", __doc__.split("\n")[0])
    layers = load_layers(lint)
    build = build or os.path.join(lint.root, "build")
    defined, needed = {}, {}
    for layer in layers:
        paths = archives(build, layer)
        if paths:
            defined[layer], needed[layer] = symbols(paths)
            if layer not in NOT_LIBRARY:
                check_globals(lint, layer, paths)
    if not defined:
        lint.finding(build, 1, "no archives found: build first")
    check_calls(lint, layers, defined, needed)
    lint.finish()


if __name__ == "__main__":
    main()

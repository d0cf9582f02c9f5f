#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""layers.py: the includes of src/ obey the file LAYERS.

Rules
  - every folder of src/ is listed in LAYERS, and a layer uses only layers listed before it
  - a file includes only headers of its own layer and of those that it may use; tests (*_test.c) also those of sim
  - headers in include/byre/ belong to the layer `lib`, except those in FOR_ALL
  - a header named *_priv.h is included only from its own folder, by tests, and by bench/micro, which counts what is inside
  - every "quoted" include exists; there are no include cycles
  - base and proto include no system header of I/O, threads or clocks
  - examples/ see the public headers only
"""
import os
import re

from common import Lint, bare_c, files, line_of, read

FOR_ALL = {"byre/error.h"}
PURE = {"base", "proto"}
IMPURE_HEADERS = re.compile(r"^(pthread|threads|unistd|fcntl|time|poll|liburing|semaphore|signal|dirent|dlfcn|netdb)\.h$|"
                            r"^(sys/(?!types\.h|uio\.h|param\.h)|linux/|net/|netinet/|arpa/)")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.M)


def load_layers(lint):
    """{name: set of layers it may use, itself included}, in order."""
    layers = {}
    for number, line in enumerate(read(lint.root, "LAYERS").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        name, uses = words[0], words[1:]
        if name in layers:
            lint.finding("LAYERS", number, f"'{name}' is listed twice")
        allowed = set(layers) if uses == ["*"] else set(uses) - {"-"}
        for used in sorted(allowed - set(layers)):
            lint.finding("LAYERS", number, f"'{name}' uses '{used}', which is not listed before it")
        layers[name] = allowed | {name}
    return layers


def layer_of(path):
    """The layer a file of the tree belongs to, or None."""
    parts = path.split("/")
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    if path.startswith("include/"):
        return None if path[len("include/"):] in FOR_ALL else "lib"
    return None


def resolve(root, includer, name):
    for base in (os.path.dirname(includer), "src", "include", os.path.dirname(includer).split("/")[0]):
        path = os.path.normpath(os.path.join(base, name))
        if os.path.exists(os.path.join(root, path)):
            return path
    return None


def check_include(lint, layers, path, line, name):
    """One quoted include; returns the path of the header, or None."""
    target = resolve(lint.root, path, name)
    if target is None:
        if not name.endswith("_gen.h"):             # made at build time
            lint.finding(path, line, f"'{name}' does not exist")
        return None
    if name.endswith("_priv.h") and os.path.dirname(target) != os.path.dirname(path) and not path.startswith(("tests/", "bench/micro/")):
        lint.finding(path, line, f"'{name}' is private to {os.path.dirname(target)}")
    own, theirs = layer_of(path), layer_of(target)
    if path.startswith("examples/") and not target.startswith(("include/", "examples/")):
        lint.finding(path, line, f"an example sees public headers only, not '{name}'")
    if path.startswith("src/") and own in layers and theirs is not None:
        may = layers[own] | ({"sim"} if path.endswith("_test.c") else set())
        if theirs not in may:
            lint.finding(path, line, f"layer '{own}' may not use '{theirs}' ('{name}')")
    return target


def check_cycles(lint, graph):
    """Reports each header that reaches itself; a loop of its own instead of recursion."""
    done = set()
    for start in sorted(graph):
        if start in done:
            continue
        stack, trail = [(start, iter(sorted(graph[start])))], [start]
        while stack:
            node, nexts = stack[-1]
            step = next(nexts, None)
            if step is None:
                done.add(node)
                stack.pop()
                trail.pop()
            elif step in trail:
                lint.finding(node, 1, "include cycle: " + " -> ".join(trail[trail.index(step):] + [step]))
            elif step not in done:
                stack.append((step, iter(sorted(graph.get(step, ())))))
                trail.append(step)


def main():
    lint = Lint("layers", __doc__.split("\n")[0])
    layers = load_layers(lint)
    source = os.path.join(lint.root, "src")
    for name in sorted(os.listdir(source)) if os.path.isdir(source) else []:
        if os.path.isdir(os.path.join(source, name)) and name not in layers:
            lint.finding("LAYERS", 1, f"folder src/{name} is not listed")
    graph = {}
    for path in files(lint.root, ".c", ".h"):
        text = bare_c(read(lint.root, path), keep_includes=True)
        graph[path] = set()
        for match in INCLUDE.finditer(text):
            line = line_of(text, match.start(0))
            if match.group(1):
                target = check_include(lint, layers, path, line, match.group(1))
                if target:
                    graph[path].add(target)
            elif layer_of(path) in PURE and not path.endswith("_test.c") and IMPURE_HEADERS.match(match.group(2)):
                if not lint.is_allowed(path):
                    lint.finding(path, line, f"layer '{layer_of(path)}' may not include <{match.group(2)}>: no I/O, threads, clock")
    check_cycles(lint, graph)
    lint.finish()


if __name__ == "__main__":
    main()

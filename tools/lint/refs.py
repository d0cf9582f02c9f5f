#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""refs.py: what comments and documents point at is there: files, functions, tests, mutants, rules, invariants.

Rules
  - a file that a comment of a .c or .h names, or a document in backticks, exists: some path of the tree ends with that name.
    Placeholders (NAME, *, x_test.c) and system headers are left alone
  - a function or struct that a comment names (by a module's prefix) occurs in code
  - the line Tests of an opening comment in src/ names a test: a file, a folder of tests/, the crash explorer; or says that the
    file is one
  - Q1, E1, J1 and RG1 are rows of docs/internals/ordering.md and goals.md; DESIGN is followed by a decision D1 of ARCHITECTURE.md
  - a file that ordering.md lists for a rule quotes that rule
  - a mutant that a comment or document names is a row of src/base/mutant.h
  - the table Barriers of ordering.md has a row for each barrier of src/meta/meta.h, with the same rules
  - each lock between coroutines (a member or variable of struct co_mutex or co_range_locks) has a row in docs/internals/concurrency.md
  - numbers of invariants are given once in a head, are none of the project's (D, E, J, P, Q, RG), and a bare I1 (or U3, K5: whatever
    letter heads use) is defined in the head of the file or of a header beside it; "U3 of q2_unclean.c" says where else
"""
import os
import re

from common import Lint, bare_c, files, is_test, line_of, read

FILE = re.compile(r"(?<![\w./<*-])((?:\.{1,2}/)*(?:[\w.-]+/)*[\w-]+\.(?:c|h|S|py|sh|md|tsv|map|case|1\.in|build))\b(?![>\w*])")
QUOTED = re.compile(r"`([^`\n]+)`")
PLACEHOLDER = re.compile(r"[A-Z]{3,}(?=[._-])|^x_test\.|^test_x\.|\*")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
PREFIXED = re.compile(r"(?<![\w./-])((?:byre|co|rt|stor|meta|fmt|q2|graph|copy|job|nbdp?|ctl|lk|luks|qed|tree|cbw|node|gate|side|dirty|qmp|sim|cx|fx|epoch)_\w*[a-z0-9])\b(?!\*|_|\.)")
WORD = re.compile(r"[A-Za-z_]\w*")
TESTS = re.compile(r"^ \* Tests?\b(.*?)(?=^ \*[ \t]*$|^ \* [A-Z]\w+ {2,}|\*/)", re.M | re.S)
IS_TESTED = re.compile(r"\btests/\w+|\bfuzz/\w+|crash explorer|\b(?:it is|[Tt]his is) one\b|none needed")
DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "STYLE.md", "SECURITY.md", "README.md", "docs/", "bench/README.md", "tests/")
TEXT = (".c", ".h", ".S", ".py", ".sh", ".md", ".build")
LETTERS = "ABCFGHIKLMNORSTUVWXYZ"         # of numbers that heads define; the others are the project's
ITSELF = ("tools/lint/refs.py", "tests/lint/lints_test.py")


def head_of(text):
    return text[:text.find("*/") + 2] if text.startswith("/*") else ""


def spots(text):
    """(comment, offset of it) for each comment of a C text; strings do not count."""
    bare = bare_c(text)
    for match in COMMENT.finditer(text):
        if not bare[match.start():match.end()].strip():
            yield match.group(0), match.start()


class Tree:
    def __init__(self, root):
        self.paths = files(root)
        self.suffixes = set()
        for path in self.paths:
            parts = path.split("/")
            self.suffixes.update("/".join(parts[i:]) for i in range(len(parts)))
        self.text = {p: read(root, p) for p in self.paths if p.endswith(TEXT)}
        self.words = set()
        for path, text in self.text.items():
            if path.endswith((".c", ".h")):
                blank = COMMENT.sub(" ", text)       # strings stay: commands of a protocol look like functions
                self.words.update(WORD.findall(blank))
            elif path.endswith(".S"):
                self.words.update(WORD.findall(text))
        self.stems = {os.path.basename(p).split(".")[0] for p in self.paths}

    def has(self, name, beside):
        if name.startswith("."):
            return os.path.normpath(os.path.join(os.path.dirname(beside), name)) in self.suffixes
        return name in self.suffixes

    def numbers(self, path, pattern):
        return set(re.findall(pattern, self.text.get(path, ""), re.M))


def check_names(lint, tree, path, text, comment, at):
    for match in FILE.finditer(comment):
        name = match.group(1)
        if not PLACEHOLDER.search(name) and not tree.has(name, path) and not lint.is_allowed(f"{path}:{name}"):
            lint.finding(path, line_of(text, at + match.start()), f"'{name}' does not exist")
    for match in PREFIXED.finditer(comment):
        name = match.group(1)
        if name not in tree.words and name not in tree.stems and not lint.is_allowed(f"{path}:{name}"):
            lint.finding(path, line_of(text, at + match.start()), f"'{name}' occurs in no code")


def check_tests(lint, tree, path, text):
    match = TESTS.search(head_of(text))
    if not match or is_test(path) or not path.startswith("src/"):
        return
    said = match.group(1)
    if not IS_TESTED.search(said) and not any(tree.has(m.group(1), path) and is_test(os.path.basename(m.group(1)))
                                              for m in FILE.finditer(said)):
        lint.finding(path, line_of(text, match.start()), "Tests names no test that exists")


def check_numbers(lint, rows, path, text):
    for kind, where in (("Q", "ordering.md"), ("E", "ordering.md"), ("J", "ordering.md"), ("RG", "goals.md")):
        for match in re.finditer(rf"(?<![\w.])(?<!noqa: ){kind}\d+(?!\w|->)(?!\.\w)", text):
            if rows[kind] and match.group(0) not in rows[kind]:
                lint.finding(path, line_of(text, match.start()), f"{match.group(0)} is not in docs/internals/{where}")
    for match in re.finditer(r"\bRELIABILITY\b", text):
        lint.finding(path, line_of(text, match.start()), "RELIABILITY is no document of this tree")
    for match in re.finditer(r"\bSTYLE(?:\.md)? A\.\d", text):
        lint.finding(path, line_of(text, match.start()), "STYLE.md has no numbered sections")
    for match in re.finditer(r"\bDESIGN\b(?!\s+\(?(D\d+))|\bDESIGN\s+(D\d+)", text):
        if not match.group(2) or (rows["D"] and match.group(2) not in rows["D"]):
            lint.finding(path, line_of(text, match.start()), "DESIGN names no decision (D1, D2, ...) of ARCHITECTURE.md")


def check_mutants(lint, mutants, path, text, comment, at):
    for match in re.finditer(r"\bMUT_([A-Z0-9_]+)\b(?!\()(\*?)|\bmutants?\s+`?(?!MUT_)([A-Z0-9]+_[A-Z0-9_]+)(\*?)", comment):
        name, star = match.group(1) or match.group(3), match.group(2) or match.group(4) or ""
        if name == "NAME":
            continue
        known = any(m.startswith(name) for m in mutants) if star or name.endswith("_") else name in mutants
        if mutants and not known:
            lint.finding(path, line_of(text, at + match.start()), f"there is no mutant {name}{star}")


def invariants(head):
    """Numbers that a head defines: in its section Invariants (or Rules), at the beginning of a line or right behind that word."""
    section = re.search(r"^ \*\s+(?:Invariants|Rules)\b.*?(?=^ \*\s*(?:Order|Concurrency|Failure|Tests)\b|\Z)", head, re.M | re.S)
    return re.findall(r"^ \*\s+(?:Invariants\s+)?([A-Z]{1,2}\d+)(?=[ :])", section.group(0), re.M) if section else []


def check_invariants(lint, tree, path, text):
    head = head_of(text)
    own = invariants(head)
    for number in sorted({n for n in own if own.count(n) > 1}):
        lint.finding(path, 1, f"the head defines {number} twice")
    for number in own:
        if re.match(r"(?:D|E|J|P|Q|RG)\d", number):
            lint.finding(path, 1, f"the head defines {number}: D, E, J, P, Q and RG are numbers of the whole project")
    folder = os.path.dirname(path)
    known = set(re.findall(r"\b[A-Z]\d+\b", head))
    for other, t in tree.text.items():
        if other.endswith(".h") and os.path.dirname(other) == folder:
            known.update(invariants(head_of(t)))
    if is_test(path):
        return
    layers = "|".join(sorted({p.split("/")[1] for p in tree.paths if p.startswith("src/")}))
    for comment, at in spots(text):
        for match in re.finditer(rf"(?<![\w.\"'-])(?!L[12]\b)[{LETTERS}]\d{{1,2}}\b(?!\s+of\s|[\"'])", comment):
            before = comment[:match.start()]
            if match.group(0) not in known and not re.search(rf"(?:[\w/]+\.[ch]|\b(?:{layers}))'?s?,?[\s*]+(?:\w+,\s*)*(?:and\s+)?$", before):
                lint.finding(path, line_of(text, at + match.start()), f"{match.group(0)} is defined neither here nor in a header beside it")


def check_ordering(lint, tree):
    path = "docs/internals/ordering.md"
    text = tree.text.get(path, "")
    for match in re.finditer(r"^\| ([QEJ]\d+) \|.*\| ([^|\n]*) \|$", text, re.M):
        for name in QUOTED.findall(match.group(2)):
            full = name if "/" in name else ("src/fmt/qed/" if name.startswith("qed_") else "src/fmt/qcow2/") + name
            if full in tree.text and not re.search(rf"\b{match.group(1)}\b", tree.text[full]):
                lint.finding(path, line_of(text, match.start()), f"{full} does not quote {match.group(1)}")


def check_barriers(lint, tree):
    """A row may speak of several barriers: its rules are those of them all."""
    path, header = "docs/internals/ordering.md", "src/meta/meta.h"
    in_code = {m.group(1): set(m.group(2).split()) for m in re.finditer(r'^\s*X\((\w+), "([^"]*)", "', tree.text.get(header, ""), re.M)}
    text, seen = tree.text.get(path, ""), set()
    section = re.search(r"^## Barriers\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    for row in re.finditer(r"^\| (`[^|\n]*) \|[^|\n]*\| ([^|\n]*) \|$", section.group(1) if section else "", re.M):
        names, line = QUOTED.findall(row.group(1)), line_of(text, section.start(1) + row.start())
        seen.update(names)
        for name in names:
            if name not in in_code:
                lint.finding(path, line, f"there is no barrier {name} in {header}")
        rules, wanted = set(re.findall(r"\w+", row.group(2))), set().union(*(in_code.get(n, set()) for n in names))
        if rules != wanted:
            lint.finding(path, line, f"{header} says that {row.group(1)} serves {' '.join(sorted(wanted))}")
    for name in sorted(set(in_code) - seen):
        lint.finding(path, 1, f"the table Barriers lacks {name}")


def check_locks(lint, tree):
    """`member`, and, as several members have the same name, its file; or the file's struct graph or graph_node, as "of the graph" and "of a node"."""
    page = "docs/internals/concurrency.md"
    if page not in tree.text:
        return
    rows = [row for row in tree.text[page].split("\n") if "`" in row]
    for path, text in tree.text.items():
        if not path.startswith("src/") or path.startswith(("src/rt/", "src/sim/")) or not path.endswith((".c", ".h")) or is_test(path):
            continue
        for match in re.finditer(r"\bstruct co_(?:mutex|range_locks) (\w+)[;,\[]", bare_c(text)):
            where = (path, " of the graph", " of a node", " of the node") if path == "src/graph/graph_priv.h" else (path,)
            if not any(f"`{match.group(1)}`" in row and any(w in row for w in where) for row in rows):
                lint.finding(path, line_of(text, match.start()), f"the lock '{match.group(1)}' of {path} has no row in {page}")


def check_document(lint, tree, path, text):
    for match in QUOTED.finditer(text):
        name = match.group(1)
        if FILE.fullmatch(name) and not PLACEHOLDER.search(name) and not tree.has(name, path) and not lint.is_allowed(f"{path}:{name}"):
            lint.finding(path, line_of(text, match.start()), f"'{name}' does not exist")


def main():
    lint = Lint("refs", __doc__.split("\n")[0])
    tree = Tree(lint.root)
    rows = {kind: tree.numbers("docs/internals/ordering.md", rf"^\| ({kind}\d+) \|") for kind in "QEJ"} | {
        "RG": tree.numbers("docs/internals/goals.md", r"^\| (RG\d+) \|"),
        "D": tree.numbers("ARCHITECTURE.md", r"^- \*\*(D\d+) ")}
    mutants = tree.numbers("src/base/mutant.h", r"^\s*X\((\w+), \"") | {
        "BARRIER_" + b for b in tree.numbers("src/meta/meta.h", r"^\s*X\((\w+), \"")}
    for path, text in tree.text.items():
        if path in ITSELF:
            continue
        check_numbers(lint, rows, path, text)
        if path.endswith((".c", ".h")):
            for comment, at in spots(text):
                check_names(lint, tree, path, text, comment, at)
                check_mutants(lint, mutants, path, text, comment, at)
            check_tests(lint, tree, path, text)
            check_invariants(lint, tree, path, text)
        elif path.endswith(".md") and path.startswith(DOCUMENTS):
            check_document(lint, tree, path, text)
            check_mutants(lint, mutants, path, text, text, 0)
    check_ordering(lint, tree)
    check_barriers(lint, tree)
    check_locks(lint, tree)
    lint.finish()


if __name__ == "__main__":
    main()

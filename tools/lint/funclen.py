#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""funclen.py: functions above 70 lines are mentioned, above 140 refused; files above 800 are mentioned, above 1500 refused.

Counted from the line of the opening brace to that of the closing one. Exceptions: `funclen path:function reason`.
"""
import re

from common import Lint, bare_c, files, read

WARN, FAIL = 70, 140
FILE_WARN, FILE_FAIL = 800, 1500
HEAD = re.compile(r"([A-Za-z_]\w*)\s*\(")


def without_directives(text):
    """Preprocessor lines (with their continuations) blanked."""
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: re.sub(r"[^\n]", " ", m.group(0)), text, flags=re.M)


def function_name(head):
    """The function's name if `head` (text between the last ';' or '}' and a '{') declares one."""
    head = head.strip()
    if not head.endswith(")") or "=" in head.split("(")[0]:
        return None
    while True:                                     # skip trailing attributes: NAME(...) groups after the parameters
        match = HEAD.search(head)
        if not match:
            return None
        if match.group(1) in ("__attribute__", "CLEANUP", "MUST_USE", "PRINTF_LIKE", "__declspec", "_Alignas"):
            depth, i = 1, match.end()
            while i < len(head) and depth:
                depth += {"(": 1, ")": -1}.get(head[i], 0)
                i += 1
            head = head[:match.start()] + head[i:]
            continue
        return match.group(1)


def functions(text):
    """(name, line of '{', length in lines) of each function; text is bare C without directives."""
    line, depth, start, head, found, current = 1, 0, 0, 0, [], None
    for i, c in enumerate(text):
        if c == "\n":
            line += 1
        elif c == "{":
            if depth == 0:
                name = function_name(text[head:i])
                if name is None and re.search(r"\bextern\b\s*\"", text[head:i]):
                    head = i + 1
                    continue                        # extern "C" {
                current, start = name, line
            depth += 1
        elif c == "}":
            depth = max(0, depth - 1)
            if depth == 0:
                if current:
                    found.append((current, start, line - start + 1))
                current, head = None, i + 1
        elif c == ";" and depth == 0:
            head = i + 1
    return found


def main():
    lint = Lint("funclen", __doc__.split("\n")[0])
    for path in files(lint.root, ".c", ".h"):
        text = read(lint.root, path)
        lines = text.count("\n")
        if lines > FILE_FAIL and not lint.is_allowed(path):
            lint.finding(path, 1, f"{lines} lines: a file may have {FILE_FAIL}")
        elif lines > FILE_WARN:
            lint.warning(path, 1, f"{lines} lines")
        for name, line, length in functions(without_directives(bare_c(text))):
            if length > FAIL and not lint.is_allowed(f"{path}:{name}"):
                lint.finding(path, line, f"{name} has {length} lines: a function may have {FAIL}")
            elif length > WARN:
                lint.warning(path, line, f"{name} has {length} lines")
    lint.finish()


if __name__ == "__main__":
    main()

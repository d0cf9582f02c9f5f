#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""banned.py: calls that have no place in byre, or only in one place.

Each rule: a name for messages and exceptions, a pattern of calls or headers, where it applies, where it is at home.
"""
import re

from common import Lint, bare_c, files, is_test, line_of, read


def calls(*names):
    return re.compile(r"(?<![\w.>])(?:%s)\s*\(" % "|".join(names))


def everywhere(path):
    return True


def library(path):
    """Code that ends up in libbyre: it neither prints nor ends the process."""
    return path.startswith("src/") and not path.startswith(("src/bin/", "src/sim/")) and not is_test(path)


def engine(path):
    return path.startswith("src/") and not path.startswith("src/sim/") and not is_test(path)


# (applies to, at home in, pattern, what to say)
RULES = [
    (everywhere, (), calls("strcpy", "strcat", "sprintf", "vsprintf", "gets", "stpcpy"),
     "writes without knowing the room: use snprintf or memcpy with a length"),
    (everywhere, (), calls("strncpy", "strncat"), "leaves strings unterminated or counts the wrong side: use snprintf"),
    (everywhere, (), calls("alloca"), "grows a 64 KiB stack by data: use the heap"),
    (everywhere, (), calls("atoi", "atol", "atoll", "atof"), "cannot report errors: use the parsers of base"),
    (everywhere, (), calls("strtok"), "keeps hidden state"),
    (everywhere, (), calls("tmpnam", "mktemp", "tempnam"), "races: use mkstemp"),
    (everywhere, (), calls("rand", "srand", "random", "srandom"), "is not replayable: use base/prng.h"),
    (everywhere, ("src/base/",), re.compile(r"#\s*include\s*<assert\.h>"), "use base/assert.h, which stays on in release builds"),
    (library, (), calls("printf", "vprintf", "dprintf", "vdprintf", "puts", "putchar", "perror", "syslog"),
     "libraries never print: return an error"),
    (library, (), re.compile(r"\b(?:stdout|stderr)\b"), "libraries never print: return an error"),
    (library, (), calls("exit", "_exit", "_Exit", "abort", "quick_exit", "err", "errx", "warn", "warnx"),
     "libraries never end the process: return an error"),
    (library, (), calls("system", "popen", "setenv", "putenv", "unsetenv", "signal", "setlocale", "chdir", "umask"),
     "libraries leave the state of the process alone"),
    (engine, ("src/meta/", "src/stor/", "src/fmt/raw/"), calls("stor_flush"),
     "only meta/ (and the raw format, stor/ itself) issues barriers (DESIGN D5)"),
    (engine, ("src/rt/", "src/stor/", "src/tree/record"), calls("fsync", "fdatasync", "sync_file_range", "syncfs", "sync"),
     "only stor/ through rt/ makes data durable (and the record of overlays, which is no image)"),
]


def main():
    lint = Lint("banned", __doc__.split("\n")[0])
    for path in files(lint.root, ".c", ".h"):
        text = bare_c(read(lint.root, path))
        for applies, homes, pattern, why in RULES:
            if not applies(path) or path.startswith(homes):
                continue
            for match in pattern.finditer(text):
                name = re.sub(r"\s*\($", "", match.group(0)).strip()
                if not lint.is_allowed(f"{path}:{name}"):
                    lint.finding(path, line_of(text, match.start()), f"{name}: {why}")
    lint.finish()


if __name__ == "__main__":
    main()

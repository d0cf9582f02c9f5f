# SPDX-License-Identifier: MIT
"""What the kernel does for TCP connections of this machine."""

KEEPALIVE = 2                             # which timer runs
TICKS = 100                               # a second of them


def keepalive_s(port, far):
    """For how many seconds at most the kernel leaves idle connections alone that have this port at their far end (else at their own), before it asks
    whether the other end is there; None: there is no connection, or it does not ask."""
    found = []
    for family in ("tcp", "tcp6"):
        with open(f"/proc/net/{family}") as f:
            rows = [line.split() for line in f][1:]
        ports = [(int(row[2 if far else 1].rpartition(":")[2], 16), row) for row in rows if row[3] == "01"]
        found += [row[5].split(":") for at, row in ports if at == port]
    left = [int(ticks, 16) / TICKS for timer, ticks in found if int(timer, 16) == KEEPALIVE]
    return max(left) if left and len(left) == len(found) else None

# SPDX-License-Identifier: MIT
"""A helper for persistent reservations that keeps them in memory, one unit for each file; it can be told to stand still, or to lie.

It speaks the protocol of qemu-pr-helper, from its document and from SPC-4. Several helpers over the same `units` are several initiators.
"""
import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading

IN, OUT = 0x5E, 0x5F
GOOD, CHECK_CONDITION, CONFLICT = 0, 2, 0x18
SENSE = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0]).ljust(96, b"\0")
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE = range(7)


class Unit:
    def __init__(self):
        self.generation, self.keys, self.holder, self.aptpl = 0, {}, None, False        # holder: (initiator, type)

    def register(self, who, key, flags):
        self.generation += 1
        self.aptpl = bool(flags & 1)
        if key:
            self.keys[who] = key
        else:
            self.drop(who)
        return GOOD

    def drop(self, who):
        self.keys.pop(who, None)
        if self.holder and self.holder[0] == who:
            self.holder = None

    def preempt(self, who, victim, kind):
        gone = [w for w, k in self.keys.items() if k == victim]
        if not gone:
            return CONFLICT
        takes = self.holder and self.holder[0] in gone
        for w in gone:
            if w != who:
                self.drop(w)
        if takes:
            self.holder = (who, kind)
        self.generation += 1
        return GOOD

    def out(self, who, action, kind, parameters):
        key, other, flags = struct.unpack(">QQ4xB3x", parameters)
        if action == REGISTER_AND_IGNORE:
            return self.register(who, other, flags)
        if self.keys.get(who, 0) != key or (action != REGISTER and not key):
            return CONFLICT
        if action == REGISTER:
            return self.register(who, other, flags)
        if action == RESERVE:
            if self.holder not in (None, (who, kind)):
                return CONFLICT
            self.holder = (who, kind)
        elif action == RELEASE:
            if self.holder == (who, kind):
                self.holder = None
        elif action == CLEAR:
            self.keys, self.holder, self.generation = {}, None, self.generation + 1
        elif action in (PREEMPT, PREEMPT_AND_ABORT):
            return self.preempt(who, other, kind)
        else:
            return CHECK_CONDITION
        return GOOD

    def data(self, action):
        if action == 2:
            return bytes([0, 8, 0x0D, 0x80 | self.aptpl, 0xEA, 0x01, 0, 0])
        if action == 0:
            body = b"".join(struct.pack(">Q", k) for k in self.keys.values())
        elif action == 1:
            body = struct.pack(">Q5xB2x", self.keys[self.holder[0]], self.holder[1]) if self.holder else b""
        else:
            body = b"".join(struct.pack(">Q4xBB4xHI", k, self.holds(w), self.holder[1] if self.holds(w) else 0, 1, len(w)) + w.encode() for w, k in self.keys.items())
        return struct.pack(">II", self.generation, len(body)) + body

    def holds(self, who):
        return bool(self.holder) and self.holder[0] == who


def take(conn, count):
    """So many bytes; fewer: it has gone."""
    data = b""
    while len(data) < count and (more := conn.recv(count - len(data))):
        data += more
    return data


class Helper:
    """start and stop may be called again and again. mode: None, or a word of LIES, or "stall", "stall-handshake"."""

    def __init__(self, units=None, name="here"):
        self.folder = tempfile.mkdtemp(prefix="pr-", dir="/tmp")              # the path of a socket has room for 107 bytes
        self.path, self.name, self.units = os.path.join(self.folder, "s"), name, {} if units is None else units
        self.mode, self.requests, self.connections, self.listener = None, [], [], None

    def start(self):
        self.released = threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(8)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()
        return self

    def stop(self):
        if self.listener is None:
            return
        os.unlink(self.path)
        self.released.set()
        for s in [self.listener, *self.connections]:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)                                   # who waits for it wakes
            s.close()
        self.listener, self.connections = None, []

    def close(self):
        self.stop()
        shutil.rmtree(self.folder)

    def accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                conn = listener.accept()[0]
                self.connections.append(conn)
                threading.Thread(target=self.serve, args=(conn,), daemon=True).start()

    def serve(self, conn):
        with contextlib.suppress(OSError), conn:
            if self.mode == "stall-handshake":
                self.released.wait()
                return
            conn.sendall(bytes(4))
            if take(conn, 4) != bytes(4):
                return
            while self.answer(conn):
                pass

    def answer(self, conn):
        """False: it is the last one."""
        cdb, fds, _, _ = socket.recv_fds(conn, 16, 4)
        cdb += take(conn, 16 - len(cdb)) if cdb else b""
        if len(cdb) < 16 or len(fds) != 1:
            return False
        stat = os.fstat(fds[0])
        os.close(fds[0])
        out = cdb[0] == OUT
        parameters = take(conn, struct.unpack(">I", cdb[5:9])[0]) if out else b""
        self.requests.append((cdb, parameters, (stat.st_dev, stat.st_ino)))
        if self.mode == "stall":
            self.released.wait()
            return False
        unit = self.units.setdefault((stat.st_dev, stat.st_ino), Unit())
        action = cdb[1] & 31
        data = b"" if out else unit.data(action)
        status = unit.out(self.name, action, cdb[2] & 15, parameters) if out else GOOD
        return self.send(conn, status, data)

    def send(self, conn, status, data):
        sense = SENSE if status == CHECK_CONDITION else bytes(96)
        plain = struct.pack(">II", status, len(data)) + sense + data
        lie = LIES.get(self.mode)
        if self.mode == "descriptors":
            self.pass_back(conn, plain)
            return True
        conn.sendall(lie(plain) if lie else plain)
        return lie is None

    @staticmethod
    def pass_back(conn, plain):
        """Descriptors that nobody has asked for, where the kernel lets them through at all."""
        with open("/dev/null", "rb") as f:
            try:
                sent = socket.send_fds(conn, [plain], [f.fileno()] * 8)
            except OSError:
                sent = 0
        conn.sendall(plain[sent:])


# What comes instead of an answer; the connection ends behind it.
LIES = {
    "nothing": lambda plain: b"",
    "half-a-head": lambda plain: plain[:50],
    "half-the-data": lambda plain: struct.pack(">II", GOOD, 4096) + plain[8:],
    "too-long": lambda plain: struct.pack(">II", GOOD, 8193) + plain[8:104] + bytes(8193),
    "huge": lambda plain: struct.pack(">II", GOOD, 0xFFFFFFFF) + plain[8:],
    "no-status": lambda plain: struct.pack(">II", 0x100, 0) + plain[8:104],
    "data-of-a-refusal": lambda plain: struct.pack(">II", CONFLICT, 8) + plain[8:104] + bytes(8),
}

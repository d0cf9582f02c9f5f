# SPDX-License-Identifier: MIT
"""A small NBD client on a bare socket, written from the protocol text. It says what it is told, valid or not, and
reads replies strictly: anything out of order raises."""
import socket
import struct

INIT, OPT, REP = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN, ERR_TOO_BIG, ERR_EXT = (0x80000000 + n for n in (1, 2, 3, 5, 6, 7, 9, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))
T_NONE, T_DATA, T_HOLE, T_STATUS, T_STATUS_EXT, T_ERROR, T_ERROR_OFFSET = 0, 1, 2, 5, 6, 0x8001, 0x8002
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
TRANSMISSION = {n: 1 << i for i, n in enumerate(
    "HAS_FLAGS READ_ONLY FLUSH FUA ROTATIONAL TRIM ZEROES DF MULTI_CONN RESIZE CACHE FAST_ZERO STATUS_PAYLOAD".split())}


class Closed(Exception):
    """The server ended the connection."""


class Broken(Exception):
    """The server said something that the protocol does not allow."""


class Chunk:
    def __init__(self, kind, payload, offset=None):
        self.kind, self.payload, self.offset = kind, payload, offset
        self.data_offset = self.length = self.error = self.message = self.error_offset = self.context = None
        self.extents = []
        if kind == T_DATA:
            self.data_offset, self.length = struct.unpack(">Q", payload[:8])[0], len(payload) - 8
            self.data = payload[8:]
        elif kind == T_HOLE:
            self.data_offset, self.length = struct.unpack(">QI", payload)
        elif kind == T_STATUS:
            self.context = struct.unpack(">I", payload[:4])[0]
            self.extents = list(struct.iter_unpack(">II", payload[4:]))
        elif kind == T_STATUS_EXT:
            self.context, count = struct.unpack(">II", payload[:8])
            self.extents = list(struct.iter_unpack(">QQ", payload[8:]))
            if count not in (0, len(self.extents)):
                raise Broken(f"{count} extents announced, {len(self.extents)} sent")
        elif kind in (T_ERROR, T_ERROR_OFFSET):
            self.error, n = struct.unpack(">IH", payload[:6])
            self.message = payload[6:6 + n].decode()
            rest = payload[6 + n:]
            if self.error == 0 or len(rest) != (8 if kind == T_ERROR_OFFSET else 0):
                raise Broken("malformed error chunk")
            if rest:
                self.error_offset = struct.unpack(">Q", rest)[0]
        elif kind != T_NONE or payload:
            raise Broken(f"chunk type {kind:#x} with {len(payload)} bytes")


class Client:
    """address: a unix path or (host, port). mode: "simple", "structured" or "extended"."""

    def __init__(self, address, timeout=20.0):
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.connect(address)
        self.sock.settimeout(timeout)
        self.mode, self.cookie = "simple", 0
        self.size = self.flags = None

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        self.sock.sendall(data)

    def recv(self, n):
        out = bytearray()
        while len(out) < n:
            try:
                piece = self.sock.recv(n - len(out))
            except ConnectionError as e:
                raise Closed(str(e)) from None
            if not piece:
                raise Closed(f"end of stream, {n - len(out)} bytes early")
            out += piece
        return bytes(out)

    def at_end(self):
        """Does the server close without saying more?"""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # ---- handshake

    def greet(self, flags=3):
        magic, opt, server_flags = struct.unpack(">QQH", self.recv(18))
        if (magic, opt) != (INIT, OPT):
            raise Broken("no newstyle greeting")
        if flags is not None:
            self.send(struct.pack(">I", flags))
        return server_flags

    def say_option(self, option, data=b"", length=None):
        self.send(struct.pack(">QII", OPT, option, len(data) if length is None else length) + data)

    def option_reply(self, option):
        magic, echo, kind, length = struct.unpack(">QIII", self.recv(20))
        if magic != REP or echo != option:
            raise Broken(f"reply magic {magic:#x} for option {echo}")
        return kind, self.recv(length)

    def option(self, option, data=b""):
        """All replies to one option, the last one is final."""
        self.say_option(option, data)
        out = []
        while not out or out[-1][0] in (REP_SERVER, REP_INFO, REP_META):
            out.append(self.option_reply(option))
        if out[-1][0] == REP_ACK and option in (STRUCTURED, EXTENDED):
            self.mode = "structured" if option == STRUCTURED else "extended"
        return out

    @staticmethod
    def info_data(name, wants=()):
        name = name.encode()
        return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wants)}H", len(wants), *wants)

    @staticmethod
    def meta_data(name, queries):
        strings = [s.encode() for s in [name, *queries]]
        data = [struct.pack(">I", len(s)) + s for s in strings]
        return data[0] + struct.pack(">I", len(queries)) + b"".join(data[1:])

    def info(self, option, name="", wants=()):
        """INFO or GO: {information type: payload}, and the final reply type."""
        replies = self.option(option, self.info_data(name, wants))
        found = {struct.unpack(">H", d[:2])[0]: d[2:] for k, d in replies if k == REP_INFO}
        if 0 in found:
            self.size, self.flags = struct.unpack(">QH", found[0])
        return found, replies[-1][0]

    def contexts(self, option, name, queries):
        """{name: id} and the final reply type."""
        replies = self.option(option, self.meta_data(name, queries))
        return {d[4:].decode(): struct.unpack(">I", d[:4])[0] for k, d in replies if k == REP_META}, replies[-1][0]

    def enter(self, name="", mode="structured", contexts=(), wants=(3,)):
        self.greet()
        if mode != "simple":
            kind = self.option(STRUCTURED if mode == "structured" else EXTENDED)[-1][0]
            if kind != REP_ACK:
                raise Broken(f"{mode} refused: {kind:#x}")
        self.ids = self.contexts(SET_META, name, contexts)[0] if contexts else {}
        _, kind = self.info(GO, name, wants)
        if kind != REP_ACK:
            raise Broken(f"GO refused: {kind:#x}")
        return self

    # ---- transmission

    def header(self, kind, offset=0, length=0, flags=0, cookie=None):
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        if self.mode == "extended":
            return struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, cookie, offset, length)
        return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)

    def say(self, kind, offset=0, length=0, flags=0, payload=b""):
        """Sends one request, returns its cookie. A WRITE's length is that of its payload."""
        if kind == WRITE and payload:
            length = len(payload)
            flags |= PAYLOAD_LEN if self.mode == "extended" else 0
        self.send(self.header(kind, offset, length, flags) + payload)
        return self.cookie

    def reply_head(self):
        """(magic name, error or (flags, type), cookie, offset or None, length of payload)"""
        magic = struct.unpack(">I", self.recv(4))[0]
        if magic == 0x67446698 and self.mode != "extended":
            error, cookie = struct.unpack(">IQ", self.recv(12))
            return "simple", error, cookie, None, 0
        if magic == 0x668E33EF and self.mode == "structured":
            flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
            return "chunk", (flags, kind), cookie, None, length
        if magic == 0x6E8A278C and self.mode == "extended":
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.recv(28))
            return "chunk", (flags, kind), cookie, offset, length
        raise Broken(f"reply magic {magic:#x} in mode {self.mode}")

    def reply(self, cookie, read_length=0, offset=None):
        """The whole answer to one request, nothing else being in flight: (error, chunks). In simple mode read_length
        bytes of data are expected and returned as one data chunk."""
        kind, info, echo, off, length = self.reply_head()
        if echo != cookie:
            raise Broken(f"cookie {echo}, not {cookie}")
        if kind == "simple":
            if self.mode == "structured" and read_length:
                raise Broken("a simple reply to a read")
            chunks = [Chunk(T_DATA, b"\0" * 8 + self.recv(read_length))] if not info and read_length else []
            return info, chunks
        chunks = []
        while True:
            flags, chunk_kind = info
            if flags > 1:
                raise Broken(f"chunk flags {flags:#x}")
            if off is not None and offset is not None and off != offset:
                raise Broken("the reply names another offset")
            chunks.append(Chunk(chunk_kind, self.recv(length), off))
            if flags & 1:
                break
            kind, info, echo, off, length = self.reply_head()
            if kind != "chunk" or echo != cookie:
                raise Broken("a chunk of something else")
        errors = [c.error for c in chunks if c.error]
        return (errors[0] if errors else 0), chunks

    def request(self, kind, offset=0, length=0, flags=0, payload=b""):
        cookie = self.say(kind, offset, length, flags, payload)
        return self.reply(cookie, length if kind == READ else 0, offset)

    def read(self, offset, length, flags=0):
        """Data, assembled from data and hole chunks that must cover the range exactly once."""
        error, chunks = self.request(READ, offset, length, flags)
        if error:
            raise OSError(error, "read")
        if self.mode == "simple":
            return chunks[0].data
        out, seen = bytearray(length), 0
        for c in chunks:
            if c.kind in (T_DATA, T_HOLE):
                at = c.data_offset - offset
                if at < 0 or at + c.length > length:
                    raise Broken("a chunk outside the request")
                seen += c.length
                if c.kind == T_DATA:
                    out[at:at + c.length] = c.data
        if seen != length:
            raise Broken(f"{seen} of {length} bytes covered")
        return bytes(out)

    def write(self, offset, data, flags=0):
        return self.request(WRITE, offset, 0, flags, data)[0]

    def status(self, offset, length, flags=0):
        """{context id: extents}"""
        error, chunks = self.request(STATUS, offset, length, flags)
        if error:
            raise OSError(error, "status")
        found = {c.context: c.extents for c in chunks if c.kind in (T_STATUS, T_STATUS_EXT)}
        if len(found) != len([c for c in chunks if c.kind != T_NONE]):
            raise Broken("a context was answered twice")
        return found

    def disconnect(self):
        self.send(self.header(DISC))
        return self.at_end()

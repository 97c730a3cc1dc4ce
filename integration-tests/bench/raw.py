"""A client of HTTP/2 that a library would not let be: it holds connections by the thousand, stops reading, or resets what it asked for.

It reads frames but no headers, for which it would need HPACK: whether a call was answered shows in its DATA.
"""

import contextlib
import ctypes
import socket
import struct

import fsql

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
WINDOW_MAX, WINDOW_DEFAULT = (1 << 31) - 1, 65_535
CANCEL = 8
SECONDS_MAX = 30
# Linux's number, which Python has no name for, and a filter of one instruction: return 0, which is how much of a packet is kept.
SO_ATTACH_FILTER, KEEP_NOTHING = 26, struct.pack("HBBI", 6, 0, 0, 0)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name, value):
    """A literal that no table keeps."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class Gone(Exception):
    """The server closed the connection. Silence is a TimeoutError instead."""


class Connection:
    """Takes as much as the server likes to send: what slows it down is its reader, not its window. With a smaller `window` it never
    gives more than that, neither for a stream nor in all. `tls` is an ssl.SSLContext."""

    def __init__(self, server, receive_buffer=None, window=WINDOW_MAX, tls=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(SECONDS_MAX)
        self.socket.connect((server.host, server.port))
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname=server.host)
        self.authority, self.next, self.buffer = f"{server.host}:{server.port}", 1, b""
        self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))
        if window > WINDOW_DEFAULT:
            self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", window - WINDOW_DEFAULT)))

    def send(self, data):
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            raise Gone from error

    def request(self, method, message, **headers):
        """The frames of one call, and its stream. Headers are Updraft's own, without their prefix."""
        stream, self.next = self.next, self.next + 2
        path = f"/arrow.flight.protocol.FlightService/{method}"
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": self.authority, "content-type": "application/grpc", "te": "trailers"}
        fields |= {f"x-updraft-{name}": str(value) for name, value in headers.items()}
        head = b"".join(header(name, value) for name, value in fields.items())
        body = b"\0" + struct.pack(">I", len(message)) + message
        return frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, body), stream

    def read(self):
        """The next frame: (kind, flags, stream, payload). Answers what asks whether it lives."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            try:
                got = self.socket.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError as error:
                raise Gone from error
            if not got:
                raise Gone
            self.buffer += got
        end = 9 + int.from_bytes(self.buffer[:3], "big")
        (kind, flags, stream), payload = struct.unpack(">BBI", self.buffer[3:9]), self.buffer[9:end]
        self.buffer = self.buffer[end:]
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        return kind, flags, stream, payload

    def greeted(self):
        """Until the server has agreed to the connection."""
        while self.read()[0] != SETTINGS:
            pass

    def answer(self, method, message, **headers):
        """The messages of the answer, one after the other. None may be an empty answer or a refusal."""
        frames, stream = self.request(method, message, **headers)
        self.send(frames)
        answer = b""
        while True:
            kind, flags, of, payload = self.read()
            if of == stream and kind == DATA:
                answer += payload
            if of == stream and (kind == RST_STREAM or flags & END_STREAM):
                break
        messages = []
        while answer:
            size = int.from_bytes(answer[1:5], "big")
            messages.append(answer[5 : 5 + size])
            answer = answer[5 + size :]
        return messages

    def call(self, method, message, **headers):
        """The messages of an answer that has some."""
        if messages := self.answer(method, message, **headers):
            return messages
        raise RuntimeError(f"{method} was refused")

    def ticket(self, sql, **headers):
        """GetFlightInfo: the message that DoGet takes, for the first endpoint."""
        descriptor = fsql.message(f1=2, f2=fsql.any_("CommandStatementQuery", f1=sql))
        (info,) = self.call("GetFlightInfo", descriptor, **headers)
        endpoint = fsql.parse(fsql.parse(info)[3][0])
        return endpoint[1][0]

    def query(self, sql):
        return self.call("DoGet", self.ticket(sql))

    def begun(self, stream):
        """Until the first bytes of an answer are there."""
        while True:
            kind, _, of, payload = self.read()
            if (kind, of) == (DATA, stream) and payload:
                return

    def deafen(self):
        """From now on no packet reaches this end or is acknowledged, as if its machine had lost the network."""
        kept = ctypes.create_string_buffer(KEEP_NOTHING)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(kept)))

    def reset(self, stream):
        return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))

    def closed(self):
        """Whether the server has closed it, looking only at what has come."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                while got := self.socket.recv(1 << 16):
                    self.buffer += got
            except ConnectionError:
                return True
            return True
        return False

    def close(self):
        self.socket.close()

    def vanish(self):
        """Closes as a process does that is killed with data to read: a reset instead of a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

"""HTTP/2 by hand (RFC 9113), for what no well-behaved library sends."""

import socket
import ssl
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = (
    0, 1, 3, 4, 6, 7, 8)
CONTINUATION = 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
CANCEL, ENHANCE_YOUR_CALM = 8, 11  # error codes
GENERATE = "/overfill.v1.Inference/Generate"
TOKENIZE = "/overfill.v1.Inference/Tokenize"


def frame(kind, flags=0, stream=0, payload=b""):
    return (struct.pack(">I", len(payload))[1:] +
            struct.pack(">BBI", kind, flags, stream) + payload)


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def _integer(value, bits):
    """HPACK's integer with a prefix of so many bits, the rest of them 0."""
    top = (1 << bits) - 1
    if value < top:
        return bytes([value])
    result, value = bytearray([top]), value - top
    while value >= 128:
        result.append(value % 128 + 128)
        value //= 128
    return bytes(result) + bytes([value])


def header(name, value):
    """A literal that no table keeps, without Huffman's code."""
    name, value = _bytes(name), _bytes(value)
    return (b"\0" + _integer(len(name), 7) + name + _integer(len(value), 7) +
            value)


def call_headers(path=GENERATE, extra=()):
    """The header block of a gRPC call."""
    return b"".join(header(name, value) for name, value in [
        (":method", "POST"), (":scheme", "http"), (":path", path),
        (":authority", "127.0.0.1"), ("te", "trailers"),
        ("content-type", "application/grpc"), *extra])


def message(proto):
    """A gRPC message on the wire."""
    data = proto.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


class Connection:
    """A client's end. `context`: an ssl.SSLContext; None: plaintext."""

    def __init__(self, address, context=None, greet=True, seconds=30):
        self.socket = socket.create_connection(address, seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(self.socket,
                                              server_hostname=address[0])
        self._unread = b""
        self.is_closed = self.is_leaving = False
        if greet:
            self.socket.sendall(PREFACE + frame(SETTINGS))
            self.wait_for(SETTINGS, flags=ACK)
            self.send(frame(SETTINGS, ACK))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def offer(self, data):
        """Sends until the server has closed; whether it took it all."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, ssl.SSLError):
            self.is_closed = True
        return not self.is_closed

    def frames(self, seconds):
        """(kind, flags, stream, payload) as they come, until the server closes
        or nothing came for so long.
        """
        end = time.monotonic() + seconds
        while True:
            while len(self._unread) >= 9:
                length = int.from_bytes(self._unread[:3], "big")
                if len(self._unread) < 9 + length:
                    break
                kind, flags, stream = struct.unpack(">BBI", self._unread[3:9])
                payload = self._unread[9:9 + length]
                self._unread = self._unread[9 + length:]
                self.is_leaving = self.is_leaving or kind == GOAWAY
                yield kind, flags, stream, payload
                end = time.monotonic() + seconds
            try:
                self.socket.settimeout(max(end - time.monotonic(), 0.001))
                data = self.socket.recv(1 << 16)
            except (socket.timeout, ssl.SSLWantReadError):
                return
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                self.is_closed = True
                return
            self._unread += data

    def wait_for(self, kind, seconds=30, flags=0):
        """The payload of the first such frame; None: none came."""
        for got, got_flags, _, payload in self.frames(seconds):
            if got == kind and got_flags & flags == flags:
                return payload
        return None

    def ping(self, seconds=30):
        """Whether the server answers a PING and goes on: no GOAWAY comes."""
        return self._acknowledged({PING, SETTINGS}, seconds)

    def settings(self, seconds=30):
        """Whether the server has read all until here, and goes on."""
        return self._acknowledged({SETTINGS}, seconds)

    def _acknowledged(self, kinds, seconds):
        data = frame(PING, payload=b"overfill") if PING in kinds else b""
        if not self.offer(data + frame(SETTINGS)):
            return False
        for kind, flags, _, _ in self.frames(seconds):
            if self.is_leaving:
                return False
            if flags & ACK:
                kinds.discard(kind)
            if not kinds:
                return True
        return False

    def goaway(self, seconds=30):
        """(error code, debug data) of the GOAWAY that comes; None: none."""
        payload = self.wait_for(GOAWAY, seconds)
        if payload is None:
            return None
        return struct.unpack(">I", payload[4:8])[0], payload[8:]

"""A DNS server for one headless Service: a record for each ready address.

Like a cluster's, it answers in random order and with a short time to live, and
knows no other type of record.
"""

import random
import socket
import struct
import threading

TYPE_A = 1
TTL_SECONDS = 5
# A response, authoritative, recursion available, no error; and no such name.
ANSWER, NO_NAME = 0x8580, 0x8583


def _question(packet):
    """(name, type, end of the question)."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1:at + 1 + packet[at]].decode("ascii"))
        at += 1 + packet[at]
    (kind,) = struct.unpack_from("!H", packet, at + 1)
    return ".".join(labels).lower(), kind, at + 5


class DnsServer:
    """Answers on `address`, HOST:PORT, until `close`."""

    def __init__(self, name, addresses):
        """`addresses()` are those of `name`."""
        self._name, self._addresses = name, addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = "%s:%d" % self._socket.getsockname()
        self.answers = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            packet, sender = self._socket.recvfrom(512)
            if not packet:
                return
            self._socket.sendto(self._answer(packet), sender)

    def _answer(self, packet):
        name, kind, end = _question(packet)
        known = name == self._name
        found = self._addresses() if known and kind == TYPE_A else []
        self.answers += bool(found)
        records = b"".join(
            struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, TTL_SECONDS, 4) +
            socket.inet_aton(address)
            for address in random.sample(found, len(found)))
        return packet[:2] + struct.pack(
            "!HHHHH", ANSWER if known else NO_NAME, 1, len(found), 0,
            0) + packet[12:end] + records

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            host, port = self.address.split(":")
            stopper.sendto(b"", (host, int(port)))
        self._thread.join()
        self._socket.close()

"""Certificates that change under load: no call fails, no bad one is taken."""

import os
import shutil
import socket
import ssl
import threading

import grpc

import authorities
import servers
from authorities import read, write
from servers import (CALL_SECONDS, LONG, harness, pb2, request, wait_until)

INFO = pb2.GetModelInfoRequest()
STAYS = "the certificates stay as they were"


class Mount:
    """A folder as Kubernetes mounts a Secret: names that lead through the link
    ..data, which a change turns to another folder in one step.
    """

    def __init__(self, folder, **files):
        self.folder, self._count = folder, 0
        os.makedirs(folder)
        self.swap(**files)
        for name in files:
            os.symlink(os.path.join("..data", name), self.path(name))

    def path(self, name):
        return os.path.join(self.folder, name)

    def swap(self, **files):
        old = os.path.realpath(self.path("..data"))
        self._count += 1
        new = f"..version-{self._count}"
        os.makedirs(self.path(new))
        for name, source in files.items():
            shutil.copy(source, os.path.join(self.path(new), name))
        os.symlink(new, self.path("..link"))
        os.replace(self.path("..link"), self.path("..data"))
        if self._count > 1:
            shutil.rmtree(old)


class ReloadCase(servers.Case):
    client_ca = False

    def setUp(self):
        self.folder = harness.work_dir(self.id())
        self.authority = authorities.Authority(self.folder)
        self.first = self.authority.server("first")
        self.client = self.authority.client()
        files = {"crt": self.first.certificate, "key": self.first.key}
        if self.client_ca:
            files["ca"] = self.authority.certificate
        self.mount = Mount(os.path.join(self.folder, "mount"), **files)
        flags = [f"--tls_cert={self.mount.path('crt')}",
                 f"--tls_key={self.mount.path('key')}", "--tls_refresh=1s"]
        if self.client_ca:
            flags.append(f"--tls_client_ca={self.mount.path('ca')}")
        self.server = self.serve(*flags, authority=self.authority,
                                 identity=self.client)

    def reloads(self, outcome):
        return self.server.value("overfill_reloads_total", outcome=outcome,
                                 what="certificates")

    def counts(self):
        return self.reloads("ok"), self.reloads("failed")

    def assert_counts(self, loaded, failed):
        wait_until(lambda: self.counts() == (loaded, failed), 20)
        self.assertEqual(self.counts(), (loaded, failed), self.server.lines)

    def serial(self):
        """Of the certificate that a new connection sees."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(self.client.certificate, self.client.key)
        with socket.create_connection(self.server.address()) as raw:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as end:
                return end.getpeercert()["serialNumber"]

    def assert_shows(self, identity):
        want = authorities.serial(identity.certificate)
        self.assertTrue(wait_until(lambda: self.serial() == want, 20),
                        self.server.lines)

    def new_connection(self, **ends):
        """One call on a connection of its own."""
        with self.server.open_channel(**ends) as channel:
            stub = servers.pb2_grpc.InferenceStub(channel)
            stub.GetModelInfo(INFO, timeout=CALL_SECONDS)


class Streams:
    """Streams on connections from before a change, which end after it."""

    def __init__(self, server, num=4):
        self._calls = [server.new_stub().Generate(request(max_tokens=LONG))
                       for _ in range(num)]
        for call in self._calls:
            next(call)

    def assert_run(self, case):
        """They have not ended, and still bring tokens."""
        for call in self._calls:
            case.assertTrue(call.is_active())
            for _ in range(3):
                next(call)

    def cancel(self):
        for call in self._calls:
            call.cancel()


class RotationTest(ReloadCase):

    def setUp(self):
        super().setUp()
        self.second = self.authority.server("second")
        self.streams = Streams(self.server)
        self.loops = [self.loop(self.new_connection, pause=0.01),
                      self.loop(lambda: self.server.stub.GetModelInfo(
                          INFO, timeout=CALL_SECONDS), pause=0.01)]

    def assert_nobody_noticed(self):
        self.streams.assert_run(self)
        self.streams.cancel()
        for loop in self.loops:
            loop.stop()
            self.assertEqual(loop.errors, [])
            self.assertGreater(loop.count, 10)
        self.assertEqual(
            self.server.value("overfill_tls_handshake_failures_total"), 0)
        self.assert_stops(self.server)

    def test_swapped_as_kubernetes_does(self):
        expiry = "overfill_certificate_expiry_timestamp_seconds"
        self.assert_shows(self.first)
        before = self.server.value(expiry)
        longer = self.authority.server("longer", days=9)
        self.mount.swap(crt=longer.certificate, key=longer.key)
        self.assert_shows(longer)
        self.assert_counts(1, 0)
        self.assertAlmostEqual(self.server.value(expiry) - before,
                               7 * 24 * 3600, delta=600)
        # And back, as a mistake is.
        self.mount.swap(crt=self.first.certificate, key=self.first.key)
        self.assert_shows(self.first)
        self.assert_counts(2, 0)
        self.assertEqual(
            self.server.count_lines("read the certificates", 2), 2)
        self.assert_nobody_noticed()

    def test_overwritten_in_two_steps(self):
        """In between, the key is another certificate's, and the old pair
        stays.
        """
        write(self.mount.path("crt"), read(self.second.certificate))
        self.assert_counts(0, 1)
        self.assert_shows(self.first)
        self.streams.assert_run(self)
        write(self.mount.path("key"), read(self.second.key))
        self.assert_shows(self.second)
        self.assert_counts(1, 1)
        self.assertEqual(self.server.count_lines(STAYS, 1), 1)
        self.assert_nobody_noticed()


class BadFilesTest(ReloadCase):

    def test_the_good_ones_stay(self):
        certificate, key = self.mount.path("crt"), self.mount.path("key")
        expired = self.authority.server("expired", days=-1)
        third = self.authority.server("third")
        others = self.loop(self.new_connection, pause=0.02)
        steps = [  # what is written, and the reason that the log gives
            ({certificate: b"\x00garbage\n"}, "holds no certificates in PEM"),
            ({key: read(third.key),
              certificate: read(self.first.certificate)}, "is not the key of"),
            ({certificate: read(self.first.certificate)[:-40]},
             "holds no certificates in PEM"),
            ({certificate: read(expired.certificate), key: read(expired.key)},
             "has expired"),
            ({certificate: read(self.first.certificate), key: b""},
             "holds no private key in PEM"),
        ]
        for number, (files, reason) in enumerate(steps, 1):
            for path, data in files.items():
                write(path, data)
            # A look between two writes may have found something else.
            self.assertTrue(wait_until(
                lambda: STAYS in self.server.lines[-1] and
                reason in self.server.lines[-1], 20), self.server.lines)
            self.assertTrue(wait_until(
                lambda: self.reloads("failed") >= number))
            self.assertEqual(self.server.count_lines(STAYS),
                             self.reloads("failed"))
        # Once each, however often it looks.
        said = len(self.server.lines)
        threading.Event().wait(2.5)
        self.assertEqual(len(self.server.lines), said, self.server.lines[said:])
        self.assert_shows(self.first)
        self.assertEqual(self.reloads("ok"), 0)
        # Mended.
        os.remove(certificate)
        write(key, read(third.key))
        shutil.copy(third.certificate, certificate)
        self.assert_shows(third)
        self.assertEqual(self.reloads("ok"), 1)
        self.assertEqual(others.stop().errors, [])
        self.assertNotIn("PRIVATE KEY", "\n".join(self.server.lines))
        self.assert_stops(self.server)


class ClientAuthorityTest(ReloadCase):
    client_ca = True

    def setUp(self):
        super().setUp()
        self.other = authorities.Authority(self.folder, "other")
        self.newcomer = self.other.client()

    def swap_authorities(self, *sources):
        bundle = os.path.join(self.folder, "bundle")
        write(bundle, b"".join(read(source) for source in sources))
        self.mount.swap(crt=self.first.certificate, key=self.first.key,
                        ca=bundle)

    def gets_in(self, identity):
        try:
            self.new_connection(identity=identity)
        except grpc.RpcError as error:
            self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)
            return False
        return True

    def resumes(self, session):
        """Whether a session from before lets its client in."""
        context, old = session
        try:
            with socket.create_connection(self.server.address()) as raw:
                with context.wrap_socket(raw, server_hostname="127.0.0.1",
                                         session=old) as end:
                    end.settimeout(CALL_SECONDS)
                    end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
                                b"\0\0\0\4\0\0\0\0\0")
                    return end.recv(9) != b""
        except (ssl.SSLError, ConnectionError):
            return False

    def session(self, identity):
        """What a client of TLS 1.2 may come back with."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(identity.certificate, identity.key)
        with socket.create_connection(self.server.address()) as raw:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as end:
                return context, end.session

    def test_rotation(self):
        self.assertTrue(self.gets_in(self.client))
        self.assertFalse(self.gets_in(self.newcomer))
        streams = Streams(self.server)
        session = self.session(self.client)
        self.assertTrue(self.resumes(session))
        self.swap_authorities(self.authority.certificate,
                              self.other.certificate)
        self.assertTrue(wait_until(lambda: self.gets_in(self.newcomer), 20),
                        self.server.lines)
        self.assertTrue(self.gets_in(self.client))
        self.swap_authorities(self.other.certificate)
        self.assertTrue(wait_until(lambda: not self.gets_in(self.client), 20),
                        self.server.lines)
        self.assertTrue(self.gets_in(self.newcomer))
        self.assertFalse(self.resumes(session))
        self.assert_counts(2, 0)
        # Connections of the old authority stay, as long as they are.
        streams.assert_run(self)
        # A bad bundle changes nothing.
        write(self.mount.path("ca"), b"no authority\n")
        self.assert_counts(2, 1)
        self.assertTrue(self.gets_in(self.newcomer))
        streams.assert_run(self)
        streams.cancel()
        self.assert_stops(self.server)


if __name__ == "__main__":
    servers.main()

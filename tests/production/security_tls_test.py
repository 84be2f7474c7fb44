"""Who gets through TLS, and who does not."""

import os
import socket
import ssl
import subprocess

import grpc

import authorities
import servers
from servers import (CALL_SECONDS, Answer, harness, pb2, request,
                     wait_until)

FAILURES = "overfill_tls_handshake_failures_total"
INFO = pb2.GetModelInfoRequest()


def tls_flags(identity, client_ca=None):
    flags = [f"--tls_cert={identity.certificate}",
             f"--tls_key={identity.key}", "--tls_refresh=1s"]
    if client_ca is not None:
        flags.append(f"--tls_client_ca={client_ca.certificate}")
    return flags


class TlsCase(servers.Case):

    def setUp(self):
        self.folder = harness.work_dir(self.id())
        self.authority = authorities.Authority(self.folder)
        self.other = authorities.Authority(self.folder, "other")
        self.identity = self.authority.server()

    def fails(self, server, call, at_least=1):
        """`call` gets UNAVAILABLE, and the failure is counted. The error."""
        before = server.value(FAILURES)
        error = self.assert_refused(call, grpc.StatusCode.UNAVAILABLE)
        self.assertTrue(wait_until(
            lambda: server.value(FAILURES) >= before + at_least), error)
        return error

    def assert_tells_nothing(self, server, *errors):
        """Neither paths nor keys, nor what the other end has sent."""
        said = "\n".join(server.lines + [str(error) for error in errors])
        for part in (self.folder, "PRIVATE KEY", "CERTIFICATE", "CN=",
                     os.path.basename(self.identity.key)):
            self.assertNotIn(part, said)


class TlsTest(TlsCase):

    def setUp(self):
        super().setUp()
        self.server = self.serve(*tls_flags(self.identity),
                                 authority=self.authority)

    def test_calls_and_streams(self):
        self.assertIn("; TLS", self.server.lines[-1])
        answer = Answer(self.server.stub.Generate(request(max_tokens=5)))
        self.assertEqual(answer.completion.usage.completion_tokens, 5)
        self.assertEqual(self.server.health(), servers.SERVING)
        self.assertEqual(self.server.value(FAILURES), 0)
        ends = subprocess.run(
            ["openssl", "x509", "-in", self.identity.certificate, "-noout",
             "-enddate"], check=True, capture_output=True, text=True).stdout
        self.assertEqual(
            self.server.value("overfill_certificate_expiry_timestamp_seconds",
                              certificate="server"),
            ssl.cert_time_to_seconds(ends.strip().split("=")[1]))
        self.assert_stops(self.server)

    def test_plaintext_is_refused(self):
        error = self.fails(self.server, lambda: self.server.new_stub(
            authority=None).GetModelInfo(INFO, timeout=CALL_SECONDS))
        with socket.create_connection(self.server.address()) as raw:
            raw.settimeout(CALL_SECONDS)
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertNotIn(b"HTTP", raw.recv(1000))
        self.assert_tells_nothing(self.server, error)
        self.server.stub.GetModelInfo(INFO, timeout=CALL_SECONDS)

    def test_client_of_another_authority_does_not_trust_it(self):
        self.assert_refused(
            lambda: self.server.new_stub(authority=self.other).GetModelInfo(
                INFO, timeout=CALL_SECONDS), grpc.StatusCode.UNAVAILABLE,
            "certificate verify failed")

    def s_client(self, target, version):
        """(whether openssl's client got through, all that it said)"""
        done = subprocess.run(
            ["openssl", "s_client", "-connect", target, version, "-alpn", "h2",
             "-cipher", "DEFAULT@SECLEVEL=0", "-CAfile",
             self.authority.certificate], input=b"", capture_output=True,
            timeout=CALL_SECONDS, check=False)
        return done.returncode == 0, done.stdout + done.stderr

    def test_old_versions_are_refused(self):
        for version, is_good in [("-tls1", False), ("-tls1_1", False),
                                 ("-tls1_2", True), ("-tls1_3", True)]:
            before = self.server.value(FAILURES)
            got_in, said = self.s_client(self.server.target, version)
            self.assertEqual(got_in, is_good, (version, said))
            self.assertTrue(wait_until(
                lambda: self.server.value(FAILURES) == before + (not is_good)))
        self.assert_tells_nothing(self.server)

    def test_openssl_here_speaks_the_old_versions(self):
        """Else the test before this one could not fail."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            target = f"127.0.0.1:{free.getsockname()[1]}"
        process = subprocess.Popen(
            ["openssl", "s_server", "-accept", target, "-quiet", "-cert",
             self.identity.certificate, "-key", self.identity.key, "-cipher",
             "DEFAULT@SECLEVEL=0"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for version in ["-tls1", "-tls1_1"]:
            self.assertTrue(wait_until(
                lambda: self.s_client(target, version)[0], 10), version)


class MutualTlsTest(TlsCase):

    def setUp(self):
        super().setUp()
        self.client = self.authority.client()
        self.server = self.serve(
            *tls_flags(self.identity, client_ca=self.authority),
            authority=self.authority, identity=self.client)

    def call(self, identity):
        stub = self.server.new_stub(identity=identity)
        return stub.GetModelInfo(INFO, timeout=CALL_SECONDS)

    def test_who_gets_in(self):
        self.assertIn("; mutual TLS", self.server.lines[-1])
        self.call(self.client)
        self.assertEqual(self.server.value(FAILURES), 0)
        self_signed = authorities.Authority(self.folder, "client")
        errors = [self.fails(self.server, lambda i=identity: self.call(i))
                  for identity in [
                      None, self.other.client(), self_signed.client(),
                      self.authority.client("expired", days=-1)]]
        self.assert_tells_nothing(self.server, *errors)
        for error in errors:  # nothing of why: the server's log says it
            self.assertNotIn("certificate", error.details())
            self.assertEqual(tuple(error.trailing_metadata() or ()), ())
        self.assertGreater(
            self.server.count_lines("certificate verify", 1), 0)
        self.assertGreater(self.server.count_lines(
            "peer did not return a certificate", 1), 0)
        self.call(self.client)
        self.assertGreater(
            self.server.value("overfill_certificate_expiry_timestamp_seconds",
                              certificate="client_ca"), 0)
        self.assert_stops(self.server)

    def test_no_call_is_made_without_a_certificate(self):
        """A client of TLS 1.3 may write before it knows that it is refused."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.set_alpn_protocols(["h2"])
        before = self.server.value(FAILURES)
        with socket.create_connection(self.server.address()) as raw:
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                with context.wrap_socket(
                        raw, server_hostname="127.0.0.1") as end:
                    end.settimeout(CALL_SECONDS)
                    end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
                                b"\0\0\0\4\0\0\0\0\0")
                    if end.recv(9) == b"":
                        raise ConnectionResetError("the end")
        self.assertTrue(wait_until(
            lambda: self.server.value(FAILURES) > before))


if __name__ == "__main__":
    servers.main()

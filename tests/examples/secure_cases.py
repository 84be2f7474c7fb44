"""TLS with an authority of one's own, certificates of clients, tokens."""

import hashlib
import json
import os
import unittest

import harness
import support
from support import count, run

TOKEN = "the-right-token"


class SecureCases(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.certificates = support.Certificates(
            harness.work_dir("certificates"))
        path = cls.path = cls.certificates.path
        for authority in ("ca", "client_ca", "other_ca"):
            cls.certificates.add_authority(authority)
        cls.certificates.add("server", "ca", "DNS:localhost")
        cls.certificates.add("named", "ca", "DNS:overfill.test")
        cls.certificates.add("client", "client_ca", "DNS:client")
        cls.certificates.add("stranger", "other_ca", "DNS:stranger")
        cls.write("token", TOKEN + "\n")
        cls.write("wrong_token", "another-token\n")
        cls.write("tenants.json", json.dumps({"tenants": [{
            "name": "team-a",
            "token_sha256": [hashlib.sha256(TOKEN.encode()).hexdigest()]}]}))
        cls.server = support.demo_server(
            f"--tls_cert={path('server.pem')}",
            f"--tls_key={path('server.key')}",
            f"--auth_tokens={path('tenants.json')}")
        cls.addClassCleanup(support.end, cls.server)
        cls.mutual = support.demo_server(
            f"--tls_cert={path('named.pem')}",
            f"--tls_key={path('named.key')}",
            f"--tls_client_ca={path('client_ca.pem')}")
        cls.addClassCleanup(support.end, cls.mutual)

    @classmethod
    def write(cls, name, text):
        with open(cls.path(name), "w") as file:
            file.write(text)
        os.chmod(cls.path(name), 0o600)

    def run_at(self, server, *args, ca="ca", env=None):
        port = server.target.rpartition(":")[2]
        return run(f"--target=localhost:{port}", f"--ca={self.path(ca)}.pem",
                   "--max_tokens=4", "--retries=0", *args, "Hello", env=env)

    def run_mutual(self, *args, ca="ca"):
        return self.run_at(self.mutual, "--server_name=overfill.test", *args,
                           ca=ca)

    def assert_answers(self, done):
        self.assertEqual((done.code, len(done.err)), (0, 1), done.all)
        self.assertGreater(len(done.out), 1)

    def assert_no_connection(self, server, done, before):
        self.assertEqual((done.code, done.out), (1, ""), done.all)
        self.assertRegex(done.err[-1], "^error: UNAVAILABLE: .+")
        self.assertEqual(count(server, "overfill_requests_total"), before)

    # ---- Tokens.

    def test_token_of_a_file(self):
        self.assert_answers(
            self.run_at(self.server, f"--token_file={self.path('token')}"))

    def test_token_of_the_environment(self):
        self.assert_answers(
            self.run_at(self.server, env={"OVERFILL_TOKEN": TOKEN}))

    def check_unauthenticated(self, reason, message, *args):
        def unauthenticated():
            return count(self.server, "overfill_unauthenticated_calls_total",
                         reason=reason)
        before = unauthenticated()
        done = self.run_at(self.server, "--retries=3", *args)
        self.assertEqual((done.code, done.out), (1, ""), done.all)
        self.assertEqual(len(done.err), 1, done.all)
        self.assertRegex(done.err[0], f"^error: UNAUTHENTICATED: .*{message}")
        self.assertNotIn("another-token", done.all)
        # A token does not become right by being sent again.
        self.assertEqual(unauthenticated(), before + 1)

    def test_wrong_token(self):
        self.check_unauthenticated(
            "unknown", "token", f"--token_file={self.path('wrong_token')}")

    def test_no_token(self):
        self.check_unauthenticated("missing", "a token is needed")

    # ---- TLS.

    def test_wrong_authority(self):
        before = count(self.server, "overfill_requests_total")
        done = self.run_at(self.server, f"--token_file={self.path('token')}",
                           ca="other_ca")
        self.assert_no_connection(self.server, done, before)

    def test_plaintext_is_refused(self):
        before = count(self.server, "overfill_requests_total")
        done = run(f"--target={self.server.target}", "--retries=0", "Hello")
        self.assert_no_connection(self.server, done, before)

    def test_client_certificate(self):
        self.assert_answers(self.run_mutual(
            f"--cert={self.path('client.pem')}",
            f"--key={self.path('client.key')}"))

    def test_client_without_a_good_certificate(self):
        before = count(self.mutual, "overfill_requests_total")
        self.assert_no_connection(self.mutual, self.run_mutual(), before)
        done = self.run_mutual(f"--cert={self.path('stranger.pem')}",
                               f"--key={self.path('stranger.key')}")
        self.assert_no_connection(self.mutual, done, before)

    def test_server_of_another_name(self):
        before = count(self.mutual, "overfill_requests_total")
        done = self.run_at(self.mutual, f"--cert={self.path('client.pem')}",
                           f"--key={self.path('client.key')}")
        self.assert_no_connection(self.mutual, done, before)

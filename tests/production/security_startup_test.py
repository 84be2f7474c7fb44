"""A bad setup ends the program: one line, exit code 2, and no port is open."""

import json
import os
import socket
import subprocess
import threading
import time
import unittest

import authorities
import servers
from authorities import read, write
from servers import harness, make_pair, tokens_text

DIGEST = "ab" * 32


class Prober:
    """Tries to connect to a port all the time."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.got_through = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set() and not self.got_through:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    # A port that connects to itself is no server's.
                    self.got_through = s.getsockname() != s.getpeername()
            except OSError:
                time.sleep(0.0005)

    def stop(self):
        self._stop.set()
        self._thread.join()


class StartupTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.folder = harness.work_dir("startup")
        authority = authorities.Authority(cls.folder)
        cls.ca = authority.certificate
        cls.good = authority.server()
        cls.another = authority.server("another")
        cls.expired = authority.server("expired", days=-1)

    def start(self, *flags, host="127.0.0.1"):
        """The process, and the prober of its port."""
        prober = Prober()
        self.addCleanup(prober.stop)
        process = subprocess.Popen(
            [harness.server_binary, *make_pair(),
             f"--listen={host}:{prober.port}", "--metrics_listen=",
             "--kv_cache_bytes=10000000", *flags], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, prober

    def check(self, *flags, says, host="127.0.0.1"):
        with self.subTest(flags):
            process, prober = self.start(*flags, host=host)
            servers.wait_until(lambda: prober.got_through or
                               process.poll() is not None,
                               harness.START_SECONDS)
            prober.stop()
            self.assertFalse(prober.got_through, "a port is open")
            out, lines = process.communicate(timeout=10)
            self.assertEqual(process.returncode, 2, lines)
            self.assertEqual((out, lines.count("\n")), ("", 1), lines)
            self.assertTrue(lines.startswith("overfill-server: "), lines)
            for part in says:
                self.assertIn(part, lines)
            self.assertNotIn("PRIVATE KEY", lines)
            self.assertNotIn(DIGEST, lines.lower())

    def file(self, name, data):
        path = os.path.join(self.folder, name)
        write(path, data)
        return path

    def tls(self, certificate, key, *flags):
        return [f"--tls_cert={certificate}", f"--tls_key={key}", *flags]

    def test_the_prober_sees_a_port(self):
        """Else no check here could see one."""
        process, prober = self.start(*self.tls(*self.good))
        self.assertTrue(servers.wait_until(lambda: prober.got_through))
        self.assertIsNone(process.poll())

    def test_certificates(self):
        cert, key = self.good
        self.check(f"--tls_cert={cert}", says=["--tls_cert and --tls_key"])
        self.check(f"--tls_key={key}", says=["--tls_cert and --tls_key"])
        self.check(f"--tls_client_ca={self.ca}",
                   says=["--tls_client_ca", "--tls_cert"])
        self.check(*self.tls(cert, self.another.key),
                   says=[self.another.key, "is not the key of", cert])
        self.check(*self.tls(*self.expired),
                   says=[self.expired.certificate, "has expired on"])
        for name, data in [("empty", b""), ("garbage", b"\0\xff\n" * 99),
                           ("cut", read(cert)[:-40])]:
            path = self.file(name, data)
            self.check(*self.tls(path, key), says=[path, "no certificates"])
            self.check(*self.tls(cert, path), says=[path, "no private key"])
            if name != "cut":
                self.check(*self.tls(cert, key, f"--tls_client_ca={path}"),
                           says=[path, "no certificates"])
        encrypted = os.path.join(self.folder, "encrypted.key")
        subprocess.run(["openssl", "pkey", "-in", key, "-aes128", "-passout",
                        "pass:word", "-out", encrypted], check=True)
        self.check(*self.tls(cert, encrypted), says=[encrypted, "encrypted"])
        # A leaf with its key in the client CA's place, and one that has ended.
        self.check(*self.tls(cert, key, f"--tls_client_ca={key}"),
                   says=[key, "no certificates"])
        self.check(*self.tls(cert, key,
                             f"--tls_client_ca={self.expired.certificate}"),
                   says=[self.expired.certificate, "expired"])

    def test_files_that_cannot_be_read(self):
        cert, key = self.good
        gone = os.path.join(self.folder, "gone")
        loop = os.path.join(self.folder, "loop")
        os.symlink(loop, loop)
        for path in (gone, loop, self.folder):
            self.check(*self.tls(path, key), says=[path])
            self.check(*self.tls(cert, path), says=[path])
            self.check(*self.tls(cert, key, f"--tls_client_ca={path}"),
                       says=[path])
            self.check(f"--auth_tokens={path}", says=[path])

    def test_token_files(self):
        def tenant(**members):
            return {"name": "a", "token_sha256": [DIGEST], **members}

        def tenants(*items):
            return json.dumps({"tenants": items})
        twice = "a token stands in the file twice"
        for number, (text, *says) in enumerate([
                ("", "JSON"),
                ("{", "JSON"),
                ("[]", "object"),
                ("{}", "tenants must be a list"),
                ('{"tenants": {}}', "tenants must be a list"),
                (json.dumps({"tenants": [], "tenant": 1}), '"tenant"'),
                (tenants(1), "tenants[0]", "object"),
                (tenants({"token_sha256": []}), "tenants[0]", "name"),
                (tenants(tenant(name="")), "name"),
                (tenants(tenant(name="a b")), "name"),
                (tenants(tenant(name="a\nb")), "name"),
                (tenants(tenant(name="x" * 65)), "name"),
                (tenants(tenant(name=7)), "name"),
                (tenants({"name": "a"}), "token_sha256"),
                (tenants(tenant(token_sha256=DIGEST)), "token_sha256"),
                (tenants(tenant(token_sha256=[DIGEST[:-1]])), "64 hex"),
                (tenants(tenant(token_sha256=["g" + DIGEST[1:]])), "64 hex"),
                (tenants(tenant(token_sha256=[7])), "token_sha256"),
                (tenants(tenant(), tenant(token_sha256=[])), "tenants[1]",
                 "name"),
                (tenants(tenant(), tenant(name="b")), "tenants[1]", twice),
                (tenants(tenant(token_sha256=[DIGEST, DIGEST.upper()])),
                 twice),
                (tenants(tenant(max_request_in_flight=1)),
                 '"max_request_in_flight"'),
                (tenants(tenant(max_requests_in_flight=-1)),
                 "max_requests_in_flight"),
                (tenants(tenant(max_requests_in_flight="1")),
                 "max_requests_in_flight"),
                (tenants(tenant(max_requests_in_flight=1.5)),
                 "max_requests_in_flight"),
                (tenants(tenant(max_tokens_per_minute=1 << 60)),
                 "max_tokens_per_minute"),
                (tenants(tenant(max_priority=101)), "max_priority"),
        ]):
            path = self.file(f"tokens{number}.json", text.encode())
            self.check(f"--auth_tokens={path}", says=[path, *says])

    def test_plaintext_for_other_machines(self):
        for host in ("0.0.0.0", "[::]", ""):
            self.check(host=host, says=["--listen", "--allow_plaintext"])
        tokens = self.file("good.json", tokens_text({"a": (["t"], {})}))
        self.check(f"--auth_tokens={tokens}", host="0.0.0.0",
                   says=["--allow_plaintext"])
        for flags in (["--allow_plaintext"], self.tls(*self.good)):
            _, prober = self.start(*flags, host="0.0.0.0")
            self.assertTrue(servers.wait_until(lambda: prober.got_through))


if __name__ == "__main__":
    servers.main()

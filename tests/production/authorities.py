"""Certificates for the tests: made by openssl, short-lived, never committed."""

import collections
import os
import subprocess

Identity = collections.namedtuple("Identity", "certificate key")  # paths

_SERVER = "subjectAltName=IP:127.0.0.1,DNS:localhost\n"
_CLIENT = "extendedKeyUsage=clientAuth\n"


def _openssl(*args):
    return subprocess.run(["openssl", *args], check=True, capture_output=True,
                          text=True).stdout


def _new_key(kind, *args):
    """Runs `openssl req` for a new key of P-256."""
    _openssl("req", *kind, "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:P-256", "-nodes", *args)


class Authority:
    """A CA in `folder`, and what it signs."""

    def __init__(self, folder, name="authority"):
        self._folder = folder
        self._name = name
        self.certificate = os.path.join(folder, f"{name}.crt")
        self._key = os.path.join(folder, f"{name}.key")
        _new_key(["-x509"], "-days", "2", "-subj", f"/CN={name}", "-keyout",
                 self._key, "-out", self.certificate)

    def _issue(self, name, extensions, days):
        base = os.path.join(self._folder, f"{self._name}-{name}")
        _new_key([], "-subj", f"/CN={name}", "-keyout", f"{base}.key", "-out",
                 f"{base}.csr")
        with open(f"{base}.ext", "w") as file:
            file.write(extensions)
        _openssl("x509", "-req", "-in", f"{base}.csr", "-CA", self.certificate,
                 "-CAkey", self._key, "-CAcreateserial", "-days", str(days),
                 "-extfile", f"{base}.ext", "-out", f"{base}.crt")
        return Identity(f"{base}.crt", f"{base}.key")

    def server(self, name="server", days=2):
        """For 127.0.0.1. One of -1 days has ended yesterday."""
        return self._issue(name, _SERVER, days)

    def client(self, name="client", days=2):
        return self._issue(name, _CLIENT, days)


def serial(certificate):
    return _openssl("x509", "-in", certificate, "-noout",
                    "-serial").strip().partition("=")[2]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)

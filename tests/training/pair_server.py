"""Whether the real server takes a pair, where it is built."""

import contextlib
import pathlib
import socket
import subprocess
import tempfile
import time

SERVER = pathlib.Path("build/release/server/overfill-server")
_SECONDS = 30


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def load(full: pathlib.Path, decode: pathlib.Path, *flags: str) -> str:
    """The log of a server that has loaded the pair and was stopped, or has
    refused it."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [SERVER, f"--prefill_model={full}", f"--decode_model={decode}",
             "--device=cpu", f"--listen=127.0.0.1:{_free_port()}",
             f"--metrics_listen=127.0.0.1:{_free_port()}",
             "--kv_cache_bytes=8388608", *flags], stderr=log)
        try:
            end = time.monotonic() + _SECONDS
            while time.monotonic() < end:
                log.seek(0)
                said = log.read().decode("utf-8", "replace")
                if " ready: " in said or server.poll() is not None:
                    break
                time.sleep(0.05)
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        return log.read().decode("utf-8", "replace")

"""Load on the two servers: 64 streams on a healthy one, and on one that is too
small everything that a client, or whoever keeps its files, can do wrong."""

import collections
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, List, Optional

import grpc

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "production"))

import authorities  # noqa: E402
import servers  # noqa: E402
from servers import Loop, bearer, pb2, request, tokens_text  # noqa: E402
from servers import harness  # noqa: E402, F401

STREAMS = 64
DEMO = [f"--prefill_model={ROOT / 'models/demo/full'}",
        f"--decode_model={ROOT / 'models/demo/decode'}"]
GOOD, SMALL, METERED = "token-good", "token-small", "token-metered"
TENANTS = {"good": ([GOOD], {"max_priority": 5}),
           "small": ([SMALL], {"max_requests_in_flight": 1}),
           "metered": ([METERED], {"max_tokens_per_minute": 40})}


def answer(**members: Any) -> Any:
    """A request for a long answer to a prompt that others send too."""
    return request("Anna lives in Bergen and works as a baker. Tom owns a red "
                   "kite. Maria lives in Porto and likes plums.",
                   max_tokens=250, **members)


def start_healthy() -> servers.Server:
    return servers.Server("--log_requests=false", pair=DEMO)


class Bench:
    """overfill-bench with 64 streams at any time; `result` waits for it."""

    def __init__(self, binary: str, target: str, seconds: int,
                 directory: pathlib.Path) -> None:
        self._json = directory / "bench.json"
        self._process = subprocess.Popen(
            [binary, "serve", f"--target={target}", f"--duration={seconds}s",
             f"--concurrency={STREAMS}", "--paths=two_stage,full,pruned",
             "--prompt=uniform:52:80", "--output=uniform:64:256",
             "--prefix_tokens=48", "--num_prefixes=4",
             f"--json={self._json}"], stdout=subprocess.DEVNULL)

    def result(self) -> Dict[str, Any]:
        code = self._process.wait(timeout=120)
        (run,) = json.loads(self._json.read_text(encoding="utf-8"))["runs"]
        assert code == 0 and run["valid"], run
        return run

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class TimedGets:
    """timed_gets.py in a process of its own."""

    def __init__(self, address: str, count: int, pause: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-B", str(HERE / "timed_gets.py"), address,
             str(count), str(pause)], stdout=subprocess.PIPE, text=True)

    def result(self) -> List[float]:
        output, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0
        return json.loads(output)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class Troubled:
    """A server with TLS and tokens, a store of KV for few answers and a queue
    of two; and the clients that trouble it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._authority = authorities.Authority(str(directory))
        self._identity = self._authority.server()
        self._tokens = directory / "tokens.json"
        self._tokens.write_bytes(tokens_text(TENANTS))
        self.server = servers.Server(
            f"--tls_cert={self._identity.certificate}",
            f"--tls_key={self._identity.key}", "--tls_refresh=1s",
            f"--auth_tokens={self._tokens}", "--kv_cache_bytes=3000000",
            "--swap_bytes=30000000", "--max_queued_requests=2",
            "--log_requests=false", pair=DEMO, authority=self._authority)
        self._lock = threading.Lock()
        self.codes: Dict[grpc.StatusCode, int] = collections.Counter()
        self.num_calls = 0  # with a token that is known
        self._loops: List[Loop] = []

    def start(self) -> None:
        steps: List[Callable[[], None]] = [
            lambda: self._call(GOOD), lambda: self._call(GOOD, answer(n=2)),
            lambda: self._call(GOOD, answer(path=pb2.DECODE_PATH_FULL)),
            lambda: self._call(GOOD, answer(path=pb2.DECODE_PATH_PRUNED))]
        # Fifteen answers where there is KV for five.
        self._loops = [Loop(step, 0.1) for step in steps * 3]
        self._loops += [Loop(self._be_wrong, 0.2),
                        Loop(self._be_unknown, 0.1),
                        Loop(self._speak_plainly, 0.2)]

    def stop(self) -> None:
        for loop in self._loops:
            loop.stop()
            assert not loop.errors, loop.errors[0]

    def kill(self) -> None:
        for loop in self._loops:
            loop.stop()
        self.server.kill()

    def _count(self, code: grpc.StatusCode, is_known: bool) -> None:
        with self._lock:
            self.codes[code] += 1
            self.num_calls += is_known

    def _call(self, token: str, message: Any = None, timeout: float = 60,
              leave_after: Optional[int] = None) -> None:
        """One call to its end, whatever that is."""
        call = self.server.stub.Generate(
            message or answer(), timeout=timeout, metadata=bearer(token))
        try:
            for number, _ in enumerate(call):
                if number == leave_after:
                    call.cancel()
        except grpc.RpcError:
            pass
        self._count(call.code(), is_known=True)

    def _be_wrong(self) -> None:
        self._call(GOOD, answer(priority=6))  # over the tenant's ceiling
        bad = answer()
        bad.sampling.top_p = 0
        self._call(GOOD, bad)
        self._call(GOOD, timeout=0.05)
        self._call(GOOD, leave_after=2)
        self._call(METERED)
        both = [threading.Thread(target=self._call, args=(SMALL,))
                for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()

    def _be_unknown(self) -> None:
        for metadata in ([], [("authorization", "Basic x")], bearer("guess")):
            call = self.server.stub.Generate(request(), timeout=60,
                                             metadata=metadata)
            self._count(call.code(), is_known=False)

    def _speak_plainly(self) -> None:
        """To a port that speaks TLS."""
        with socket.create_connection(self.server.address(), timeout=10) as end:
            end.sendall(b"GET / HTTP/1.1\r\n\r\n")
            end.settimeout(10)
            try:
                while end.recv(4096):
                    pass
            except ConnectionError:
                pass

    def renew_certificate(self) -> None:
        new = self._authority.server("new")
        for old, fresh in zip(self._identity, new):
            os.replace(fresh, old)

    def renew_tokens(self) -> None:
        self._replace_tokens(tokens_text(dict(TENANTS, new=(["token-new"],
                                                            {}))))

    def break_tokens(self) -> None:
        self._replace_tokens(b"{")

    def _replace_tokens(self, content: bytes) -> None:
        new = self._directory / "new.json"
        new.write_bytes(content)
        os.replace(new, self._tokens)

"""What the tests of the examples share: the clients, servers, certificates."""

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "e2e"))

import harness  # noqa: E402

EXAMPLES = os.path.join(harness.ROOT, "examples")
PAIR = os.path.join(harness.ROOT, "models", "demo")
CLIENT_SECONDS = 60

FACTS = ("Anna lives in Bergen and works as a baker. Tom owns a red kite. "
         "Maria lives in Porto and likes plums.\nQuestion: ")
PROMPTS = [FACTS + question + "\nAnswer:" for question in (
    "Where does Anna live?", "Who owns a kite?", "What does Maria like?")]

_started = []

example = None  # the name of the client under test; set by main
cpp_client = None


def _python(script):
    out = harness.work_dir("example_stubs")
    if not os.listdir(out):
        proto = os.path.join(harness.ROOT, "proto")
        subprocess.run(
            ["protoc", f"-I{proto}", f"--python_out={out}",
             f"--grpc_out={out}", "--plugin=protoc-gen-grpc=" +
             shutil.which("grpc_python_plugin"),
             "overfill/v1/inference.proto", "overfill/rpc/status.proto",
             "overfill/rpc/error_details.proto"], check=True)
    return ([sys.executable, "-B", os.path.join(EXAMPLES, "python", script)],
            {"PYTHONPATH": out})


def _node():
    folder = os.path.join(EXAMPLES, "node")
    installed = os.path.join(folder, "node_modules", ".package-lock.json")
    wanted = os.path.join(folder, "package-lock.json")
    if (not os.path.exists(installed) or
            os.path.getmtime(installed) < os.path.getmtime(wanted)):
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit",
                        "--no-fund", "--silent"], cwd=folder, check=True)
    return ["node", os.path.join(folder, "client.js")], {}


def command():
    """(arguments, environment) of the client under test."""
    return {
        "python_sync": lambda: _python("sync_client.py"),
        "python_async": lambda: _python("async_client.py"),
        "node": _node,
        "cpp": lambda: ([cpp_client], {}),
    }[example]()


def start(*args, env=None):
    """The client's process, with pipes."""
    arguments, extra = command()
    environment = dict(os.environ, **extra, **(env or {}))
    # Proxies are not for loopback.
    environment["no_proxy"] = "127.0.0.1,localhost"
    _started.append(subprocess.Popen(
        [*arguments, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment))
    return _started[-1]


@atexit.register
def _end_clients():
    """Those that a failed test has left."""
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.wait()


class Done:
    """A client that has ended."""

    def __init__(self, process, begin):
        try:
            out, err = process.communicate(timeout=CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        self.seconds = time.monotonic() - begin
        self.code, self.out = process.returncode, out.decode()
        # gRPC's own log of C++ and Python is not ours.
        self.err = [line for line in err.decode().splitlines()
                    if not re.match(r"[EIDW]\d{4} ", line)]
        self.all = f"{self.code} {self.out!r} {err.decode()}"

    def delays(self):
        """What it said that it waited before each further try."""
        return [float(re.match(r"retry \d+ of \d+ in ([\d.]+) s: ", line)[1])
                for line in self.err if line.startswith("retry ")]


def run(*args, env=None):
    begin = time.monotonic()
    return Done(start(*args, env=env), begin)


def demo_server(*flags):
    """The bundled pair."""
    return harness.Server([
        f"--prefill_model={PAIR}/full", f"--decode_model={PAIR}/decode",
        *flags])


def endless_server(*flags):
    """The bundled pair, made to ramble: answers of 16384 tokens, some 10 s.

    What it takes for its end of an answer is a token that it never says: of a
    byte that is in no text.
    """
    never_said = 1
    directory = harness.work_dir("endless")
    for half in ("full", "decode"):
        path = os.path.join(directory, half)
        if not os.path.exists(path):
            # The manifest is of the pair as it is shipped.
            shutil.copytree(os.path.join(PAIR, half), path,
                            ignore=shutil.ignore_patterns("overfill.json"))
            harness.set_config(path, max_position_embeddings=16384,
                               eos_token_id=never_said)
            generation = os.path.join(path, "generation_config.json")
            with open(generation) as file:
                config = json.load(file)
            config["eos_token_id"] = never_said
            with open(generation, "w") as file:
                json.dump(config, file)
    return harness.Server([f"--prefill_model={directory}/full",
                           f"--decode_model={directory}/decode", *flags])


def end(server):
    """At once: how a server stops is for other tests to say."""
    server.process.kill()
    server.stop()


class Full:
    """Fills a server that decodes one request and queues one."""

    def __init__(self, server):
        self._server = server
        self._calls = []

    def __enter__(self):
        request = harness.pb2.GenerateRequest(text="Hello")
        request.sampling.temperature = 0
        for count in (1, 2):
            call = self._server.stub.Generate(request, timeout=120)
            self._calls.append(call)
            # The first is out of the queue before the second comes.
            if count == 1:
                next(call)
            call.initial_metadata()
        assert self._server.live() == 2
        return self

    def empty(self):
        for call in self._calls:
            call.cancel()

    def __exit__(self, *_):
        self.empty()
        assert harness.wait_until(lambda: self._server.live() == 0)


def count(server, metric, **labels):
    """The sum of a metric's series with these labels."""
    total = 0
    for series, value in server.metrics().items():
        name, _, rest = series.partition("{")
        if name == metric and all(f'{key}="{text}"' in rest
                                  for key, text in labels.items()):
            total += value
    return total


def rejected(server):
    return count(server, "overfill_requests_rejected_total")


class Certificates:
    """Made by openssl: authorities, and certificates that they sign."""

    def __init__(self, directory):
        self._directory = directory

    def path(self, name):
        return os.path.join(self._directory, name)

    def _openssl(self, *args):
        subprocess.run(["openssl", *args], check=True, capture_output=True,
                       cwd=self._directory)

    def add_authority(self, name):
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
            f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")

    def add(self, name, authority, names):
        """A certificate for these names, as in "DNS:localhost"."""
        with open(self.path(f"{name}.ext"), "w") as file:
            file.write(f"subjectAltName={names}\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", f"{name}.csr")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem",
            "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2",
            "-extfile", f"{name}.ext", "-out", f"{name}.pem")

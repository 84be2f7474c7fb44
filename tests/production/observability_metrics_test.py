"""Each metric that the server exports is moved by something that happens."""

import concurrent.futures
import os
import re
import time
import urllib.request

import grpc

import authorities
import servers
from authorities import read, write
from servers import (CALL_SECONDS, LONG, Answer, bearer, harness, pb2, request,
                     tokens_text, wait_until)

PATHS = [pb2.DECODE_PATH_TWO_STAGE, pb2.DECODE_PATH_FULL,
         pb2.DECODE_PATH_PRUNED]

# What no scenario here moves, and why.
CONSTANT = {"overfill_build_info", "overfill_model_info", "process_max_fds",
            "process_start_time_seconds"}
# A fault in this machine or in the program moves these; the unit tests do.
FAULTS = {"overfill_integrity_failures_total",
          "overfill_transfer_retries_total",
          "overfill_discarded_commits_total"}
# The HTTP server's own.
FOREIGN = re.compile("exposer_")


def page(server):
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics",
                                timeout=30) as response:
        return response.read().decode()


def families_of(text):
    """{family: type}"""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))


def family_of(series, families):
    name = series.partition("{")[0]
    if name in families:
        return name
    return re.sub("_(bucket|sum|count)$", "", name)


def declared():
    """The names that stand in the server's sources."""
    folder = os.path.join(harness.ROOT, "server")
    return {name for file in os.listdir(folder) if file.endswith(".cc")
            for name in re.findall(rb'"((?:overfill|process)_[a-z0-9_]+)"',
                                   read(os.path.join(folder, file)))}


class Recorder:
    """Scrapes all the time; which series have had more than one value."""

    def __init__(self, case, server):
        self._server, self._values, self.families = server, {}, {}
        self._absent = set()
        self._scrape()
        self._first = set(self._values)
        self._loop = case.loop(self._scrape, pause=0.01)

    def _scrape(self):
        self.families.update(families_of(page(self._server)))
        for series, value in self._server.metrics().items():
            self._values.setdefault(series, set()).add(value)

    def has_moved(self, part):
        return any(part in series and len(values) > 1
                   for series, values in list(self._values.items()))

    def stop(self):
        """{family: the series that have moved}"""
        errors = self._loop.stop().errors
        assert not errors, errors
        self._scrape()
        moved = {family: set() for family in self.families}
        for series, values in self._values.items():
            if len(values) > 1 or (series not in self._first and values != {0}):
                moved[family_of(series, self.families)].add(series)
        return moved


class MetricsTest(servers.Case):

    def setUp(self):
        self.folder = harness.work_dir(self.id())
        self.tokens = os.path.join(self.folder, "tokens.json")
        self.authority = authorities.Authority(self.folder)
        first = self.authority.server()
        self.pem = {name: os.path.join(self.folder, f"now.{name}")
                    for name in ("crt", "key")}
        write(self.pem["crt"], read(first.certificate))
        write(self.pem["key"], read(first.key))
        self.write_tokens()

    def write_tokens(self, *more):
        write(self.tokens, tokens_text({
            "a": (["a-token", *more], {"max_requests_in_flight": 40}),
            "few": (["few-token"], {"max_requests_in_flight": 1}),
            "slow": (["slow-token"], {"max_tokens_per_minute": 10})}))

    def generate(self, token="a-token", timeout=CALL_SECONDS, **members):
        return Answer(self.server.stub.Generate(
            request(**members), timeout=timeout, metadata=bearer(token)))

    def test_all_of_them_move(self):
        self.server = self.serve(
            f"--tls_cert={self.pem['crt']}", f"--tls_key={self.pem['key']}",
            f"--auth_tokens={self.tokens}", "--tls_refresh=1s",
            # Few blocks: answers make room for others.
            "--kv_cache_bytes=700000", "--max_sequence_tokens=200",
            "--swap_bytes=2000000", authority=self.authority)
        recorder = Recorder(self, self.server)
        # States that last for a moment are not in each scrape.
        self.assertTrue(wait_until(lambda: self.load() or all(
            map(recorder.has_moved, ['state="swapped"', 'state="queued"',
                                     'overfill_kv_transfers']))))
        self.ends()
        self.refusals()
        self.reloads()
        moved = recorder.stop()
        known = set(recorder.families)
        moved["overfill_stuck_steps_total"] |= self.stuck_steps()
        self.check_labels(moved)
        missing = {family for family, series in moved.items()
                   if not series and not FOREIGN.match(family)}
        self.assertEqual(missing, CONSTANT | FAULTS)
        self.assertEqual({name.decode() for name in declared()},
                         {name for name in known if not FOREIGN.match(name)})
        self.assert_stops(self.server)

    def load(self):
        with concurrent.futures.ThreadPoolExecutor(16) as executor:
            for answer in executor.map(
                    lambda i: self.generate(text=f"{i} " * 20, max_tokens=100,
                                            path=PATHS[i % 3]), range(24)):
                self.assertIsNone(answer.error)
        for _ in range(2):  # the second finds its prompt in the cache
            self.assertIsNone(self.generate(text="word " * 30).error)

    def ends(self):
        stopped = request(max_tokens=50)
        stopped.limits.stop_token_ids.extend(
            self.generate(max_tokens=1).ids)
        self.assertIsNone(Answer(self.server.stub.Generate(
            stopped, metadata=bearer("a-token"))).error)
        def cancelled():
            call = self.server.stub.Generate(request(max_tokens=150),
                                             metadata=bearer("a-token"))
            next(call)
            call.cancel()  # where it has not ended by then
            return self.server.value("overfill_requests_total",
                                     outcome="cancelled")
        self.assertTrue(wait_until(cancelled))
        # So many that the last ones are late.
        with concurrent.futures.ThreadPoolExecutor(30) as executor:
            list(executor.map(lambda i: self.generate(
                text=f"{i}", max_tokens=150, timeout=0.03), range(30)))

    def refusals(self):
        self.assertIsNotNone(self.generate(text="").error)
        self.assertIsNotNone(self.generate(priority=9).error)
        for tenant, reason in [("few", "tenant_in_flight"),
                               ("slow", "tenant_rate")]:
            def refused():
                held = self.server.stub.Generate(
                    request(max_tokens=150), metadata=bearer(f"{tenant}-token"))
                self.generate(f"{tenant}-token")
                Answer(held)
                return self.server.value("overfill_requests_rejected_total",
                                         reason=reason)
            self.assertTrue(wait_until(refused))
        for metadata in ([], [("authorization", "x")], bearer("wrong")):
            self.assert_refused(lambda: self.server.stub.GetModelInfo(
                pb2.GetModelInfoRequest(), metadata=metadata),
                                grpc.StatusCode.UNAUTHENTICATED)
        self.assert_refused(lambda: self.server.new_stub(
            authority=None).GetModelInfo(pb2.GetModelInfoRequest(),
                                         timeout=CALL_SECONDS),
                            grpc.StatusCode.UNAVAILABLE)

    def reloads(self):
        def reloaded(what, outcome):
            return wait_until(lambda: self.server.value(
                "overfill_reloads_total", what=what, outcome=outcome))
        longer = self.authority.server("longer", days=9)
        self.write_tokens("more")
        write(self.pem["crt"], read(longer.certificate))
        self.assertTrue(reloaded("tokens", "ok"))
        self.assertTrue(reloaded("certificates", "failed"))
        write(self.pem["key"], read(longer.key))
        write(self.tokens, b"{")
        self.assertTrue(reloaded("certificates", "ok"))
        self.assertTrue(reloaded("tokens", "failed"))

    def stuck_steps(self):
        """One step reads the whole prompt, and takes longer than allowed."""
        server = self.serve("--stuck_step_timeout=1ms",
                            "--prefill_chunk_tokens=16000")
        recorder = Recorder(self, server)
        prompt = pb2.TokenIds(ids=[5 + i % 50 for i in range(15900)])
        answer = Answer(server.stub.Generate(request(tokens=prompt,
                                                     max_tokens=1)))
        self.assertIsNone(answer.error)
        return recorder.stop()["overfill_stuck_steps_total"]

    def check_labels(self, moved):
        """The labels that tell one cause from another."""
        for family, label, values in [
                ("overfill_requests_total", "outcome",
                 ["length", "stop", "cancelled", "deadline_exceeded"]),
                ("overfill_requests_rejected_total", "reason",
                 ["invalid_argument", "permission", "tenant_in_flight",
                  "tenant_rate"]),
                ("overfill_unauthenticated_calls_total", "reason",
                 ["missing", "malformed", "unknown"]),
                ("overfill_requests", "state",
                 ["queued", "decoding", "swapped"]),
                ("overfill_kv_blocks", "state", ["free", "cached", "owned"]),
                ("overfill_step_rows", "kind", ["prompt", "decode"])]:
            for value in values:
                self.assertTrue(
                    [s for s in moved[family] if f'{label}="{value}"' in s],
                    f"{family}: {value}")
        for what in ("tokens", "certificates"):
            for outcome in ("ok", "failed"):
                self.assertTrue([
                    s for s in moved["overfill_reloads_total"]
                    if f'"{what}"' in s and f'"{outcome}"' in s])

    def test_faults_are_moved_by_unit_tests(self):
        folder = os.path.join(harness.ROOT, "tests", "server")
        tests = b"".join(read(os.path.join(folder, file))
                         for file in os.listdir(folder)
                         if file.endswith("_test.cc"))
        for name in FAULTS:
            with self.subTest(name):
                self.assertRegex(tests, rf'"{name}"\), [1-9]'.encode())


class PageTest(servers.Case):

    def test_the_format(self):
        server = self.serve()
        self.assertIsNone(Answer(server.stub.Generate(request())).error)
        text = page(server)
        families = families_of(text)
        buckets = {}
        for line in text.splitlines():
            if line.startswith("#"):
                self.assertRegex(line, r"^# (HELP|TYPE) [a-z0-9_]+ .+")
                continue
            match = re.fullmatch(
                r'([a-z0-9_]+)(?:\{((?:[a-z_]+="[^"]*",?)*)\})? (\S+)', line)
            self.assertTrue(match, line)
            family = family_of(match[1], families)
            self.assertIn(family, families)
            self.assertIn(f"# HELP {family} ", text)
            if families[family] == "counter":
                self.assertTrue(family.endswith("_total"), family)
            if match[1].endswith("_bucket"):
                rest = re.sub('le="[^"]*",?', "", match[2])
                buckets.setdefault((family, rest), []).append(float(match[3]))
            else:
                float(match[3])
        self.assertGreater(len(buckets), 10)
        for values in buckets.values():  # cumulative
            self.assertEqual(values, sorted(values))
        self.assert_stops(server)

    def test_the_process(self):
        begin = time.time()
        server = self.serve()
        call = server.stub.Generate(request(max_tokens=LONG))
        next(call)
        time.sleep(0.5)
        call.cancel()
        wait_until(lambda: server.live() == 0)
        metrics = server.metrics()

        def status(name):
            with open(f"/proc/{server.process.pid}/status") as file:
                return int(re.search(rf"^{name}:\s*(\d+)", file.read(),
                                     re.M)[1])
        for name, want, delta in [
                ("resident_memory_bytes", 1024 * status("VmRSS"), 8 << 20),
                ("virtual_memory_bytes", 1024 * status("VmSize"), 64 << 20),
                ("threads", status("Threads"), 4),
                ("open_fds", server.open_files(), 4),
                ("start_time_seconds", begin, 3)]:
            self.assertAlmostEqual(metrics[f"process_{name}"], want,
                                   delta=delta, msg=name)
        with open(f"/proc/{server.process.pid}/stat") as file:
            ticks = file.read().rsplit(") ", 1)[1].split()[11:13]
        seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        self.assertAlmostEqual(metrics["process_cpu_seconds_total"], seconds,
                               delta=0.3)
        self.assertGreater(metrics["process_cpu_seconds_total"], 0.1)
        with open(f"/proc/{server.process.pid}/limits") as file:
            limit = re.search(r"Max open files\s+(\d+)", file.read())[1]
        self.assertEqual(metrics["process_max_fds"], int(limit))
        before = metrics["process_open_fds"]
        for _ in range(10):
            server.health(server.new_channel())
        self.assertGreaterEqual(server.value("process_open_fds"), before + 10)
        self.assert_stops(server)


if __name__ == "__main__":
    servers.main()

"""Answers, deadlines, cancelling, bad input, several servers."""

import signal
import subprocess
import time
import unittest

import harness
import support
from support import PROMPTS, count, run


class PlainCases(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.server = support.demo_server()
        cls.addClassCleanup(support.end, cls.server)
        cls.endless = support.endless_server()
        cls.addClassCleanup(support.end, cls.endless)

    def overfill_client(self, prompt):
        return subprocess.run(
            [harness.client_binary, f"--target={self.server.target}",
             "--temperature=0", prompt], check=True,
            stdout=subprocess.PIPE).stdout.decode()

    def assert_cancelled_on_the_server(self, before):
        self.assertTrue(harness.wait_until(lambda: self.endless.live() == 0))
        self.assertEqual(self.ended("cancelled"), before + 1)

    def ended(self, outcome):
        return count(self.endless, "overfill_requests_total", outcome=outcome)

    def test_answers(self):
        done = run(f"--target={self.server.target}", "--temperature=0",
                   *PROMPTS)
        self.assertEqual(done.code, 0, done.all)
        wanted = [self.overfill_client(prompt) for prompt in PROMPTS]
        self.assertIn("Bergen", wanted[0])
        self.assertEqual(done.out, "".join(wanted))
        self.assertEqual(len(done.err), len(PROMPTS), done.all)
        for line in done.err:
            self.assertRegex(
                line, r"^done: EOS, [3-9]\d prompt tokens, \d+ tokens$")

    def test_max_tokens(self):
        done = run("--target", self.server.target, "--temperature", "0",
                   "--max_tokens", "3", PROMPTS[0])
        self.assertEqual(done.code, 0, done.all)
        self.assertIn("done: LENGTH, ", done.err[0])
        self.assertTrue(done.err[0].endswith(", 3 tokens"), done.all)
        self.assertTrue(
            self.overfill_client(PROMPTS[0]).startswith(done.out[:-1]))

    def test_text_beyond_ascii(self):
        """Through the flags, the server and back to standard output."""
        prompt = "Grüße, 日本 😀"
        done = run(f"--target={self.server.target}", "--temperature=0",
                   "--max_tokens=8", prompt)
        request = harness.pb2.GenerateRequest(text=prompt)
        request.sampling.temperature = 0
        request.limits.max_tokens = 8
        answer = harness.Answer(self.server.stub.Generate(request, timeout=60))
        self.assertEqual((done.code, done.out), (0, answer.text + "\n"))
        self.assertIn(f" {answer.completion.usage.prompt_tokens} prompt tok",
                      done.err[0])

    def test_deadline(self):
        def ended():
            # The client's clock may be the first to notice.
            return self.ended("deadline_exceeded") + self.ended("cancelled")
        before = ended()
        done = run(f"--target={self.endless.target}", "--timeout=2", "Hello")
        self.assertEqual(done.code, 1, done.all)
        self.assertGreater(done.seconds, 2)
        self.assertGreater(len(done.out), 1)
        self.assertEqual(len(done.err), 1, done.all)
        self.assertRegex(done.err[0], "^error: DEADLINE_EXCEEDED: .+")
        self.assertTrue(harness.wait_until(lambda: self.endless.live() == 0))
        self.assertEqual(ended(), before + 1)

    def test_cancel_after_so_many_tokens(self):
        before = self.ended("cancelled")
        done = run(f"--target={self.endless.target}", "--cancel_after=10",
                   "Hello", "never sent")
        self.assertEqual((done.code, done.err), (130, ["cancelled"]), done.all)
        self.assertGreater(len(done.out), 1)
        self.assert_cancelled_on_the_server(before)

    def test_ctrl_c_cancels_while_the_answer_streams(self):
        before = self.ended("cancelled")
        process = support.start(f"--target={self.endless.target}", "Hello")
        # Text is there long before the answer's end.
        self.assertTrue(process.stdout.read(1))
        self.assertEqual(self.endless.live(), 1)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        done = support.Done(process, begin)
        self.assertEqual((done.code, done.err), (130, ["cancelled"]), done.all)
        self.assert_cancelled_on_the_server(before)

    def test_bad_fields_are_named(self):
        done = run(f"--target={self.server.target}", "--max_tokens=0",
                   "--temperature=-1", "Hello")
        self.assertEqual((done.code, done.out), (1, ""), done.all)
        self.assertEqual(done.err[0], "error: INVALID_ARGUMENT")
        self.assertEqual(
            sorted(line.split(": ")[0] for line in done.err[1:]),
            ["  limits.max_tokens", "  sampling.temperature"], done.all)
        for line in done.err[1:]:
            self.assertRegex(line, "^  [a-z_.]+: must be .+")

    def test_bad_flags(self):
        target = f"--target={self.server.target}"
        token = {"OVERFILL_TOKEN": "secret-token"}
        for args, env, said in [
                ([target, "--no_such=1", "x"], None, ""),
                ([target], None, "PROMPT"),
                ([target, "--ca=/no/such.pem", "x"], None, "/no/such.pem"),
                ([target, f"--ca={__file__}", f"--cert={__file__}", "x"],
                 None, "--key"),
                ([target, "x"], token, "--ca")]:
            done = run(*args, env=env)
            self.assertEqual((done.code, done.out), (2, ""),
                             f"{args} {done.all}")
            self.assertIn(said, "\n".join(done.err))
            self.assertNotIn("secret-token", done.all)

    def test_round_robin_over_the_addresses_of_a_name(self):
        servers = [self.server, self.endless]

        def counts():
            return [count(s, "overfill_requests_total") for s in servers]
        # Both connect at once. On a busy machine all calls may be over before
        # the second one is there.
        for _ in range(5):
            before = counts()
            done = run("--target=ipv4:" + ",".join(s.target for s in servers),
                       "--max_tokens=2", *["Hello"] * 8)
            self.assertEqual((done.code, len(done.err)), (0, 8), done.all)
            more = [now - old for now, old in zip(counts(), before)]
            if min(more) >= 2:
                return
        self.fail(f"calls of each server: {more}")

    def test_a_dead_address_is_passed_over(self):
        dead = "127.0.0.1:1"
        done = run(f"--target=ipv4:{dead},{self.server.target}",
                   "--retries=0", "--max_tokens=2", *["Hello"] * 4)
        self.assertEqual((done.code, len(done.err)), (0, 4), done.all)

    def test_a_draining_server_gets_no_new_calls(self):
        """Its health says so while it still takes calls."""
        draining = support.demo_server("--drain_delay=1m",
                                       "--drain_timeout=2m")
        try:
            draining.process.send_signal(signal.SIGTERM)
            self.assertTrue(harness.wait_until(
                lambda: any("drain" in line for line in draining.lines)))
            done = run(
                f"--target=ipv4:{draining.target},{self.server.target}",
                "--retries=0", "--max_tokens=2", *["Hello"] * 4)
            self.assertEqual((done.code, len(done.err)), (0, 4), done.all)
            # grpc-js has no health checks of its own.
            if support.example != "node":
                self.assertEqual(count(draining, "overfill_requests_total"), 0)
        finally:
            support.end(draining)

    def test_a_name_is_looked_up(self):
        port = self.server.target.rpartition(":")[2]
        done = run(f"--target=dns:///localhost:{port}", "--max_tokens=2",
                   "Hello")
        self.assertEqual(done.code, 0, done.all)

"""The log of requests: what it says, and what nobody makes it say."""

import os
import time

import grpc

import http2
import servers
from authorities import write
from http2 import Connection, frame
from log_lines import PARSERS
from servers import (CALL_SECONDS, LONG, Answer, bearer, harness, pb2, request,
                     tokens_text, wait_until)

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE = f"00-{TRACE_ID}-{SPAN_ID}-01"
MARKER = "Xylophone-7731"
REFUSALS_PER_SECOND = 20
HOSTILE = [
    'a"b', "a\\", "\\n", '" code=OK tenant="other', "}{", "a=b c",
    '","message":"forged"}',
]
FORGED = ('{"time":"2026-01-01T00:00:00.000Z","level":"error",'
          '"message":"forged"}')
HOSTILE_PROMPTS = HOSTILE + [
    f"x\n{FORGED}\ny", f"x\r\n{FORGED}\r",
    "2026-01-01T00:00:00.000Z ERROR forged",
    "\x00\x01\x1b[31m\x7f\t\b", "\u2028\u2029\x85\u9b41\U0001f600", '"' * 999,
]


class LogCase(servers.Case):

    def serve_log(self, log_format, *flags):
        self.parse = PARSERS[log_format]
        self.server = self.serve(f"--log_format={log_format}", *flags)
        self.stub = self.server.stub

    def records(self, message=None):
        """Every line of the log must be one."""
        found = [self.parse(line) for line in list(self.server.lines)]
        return [r for r in found if message in (None, r["message"])]

    def record_of(self, request_id):
        def find():
            return [r for r in self.records() if
                    r.get("request_id") == request_id]
        self.assertTrue(wait_until(find), request_id)
        (record,) = find()
        return record

    def generate(self, metadata=(), timeout=CALL_SECONDS, **members):
        return Answer(self.stub.Generate(
            request(**members), timeout=timeout, metadata=list(metadata)))

    def for_both(self, body, *flags):
        for log_format in PARSERS:
            with self.subTest(log_format):
                self.serve_log(log_format, *flags)
                body()
                self.assert_stops(self.server)
                # The end of the run, too. By now, all lines have come.
                self.assertEqual(self.records()[-1]["message"], "stopped")


class RunTest(LogCase):
    """One line for each event of a whole run."""

    def setUp(self):
        self.path = os.path.join(harness.work_dir(self.id()), "tokens.json")
        self.write_tokens()

    def write_tokens(self, *more):
        write(self.path, tokens_text({"alpha": (["token", *more], {
            "max_requests_in_flight": 2})}))

    def call(self, **members):
        members.setdefault("metadata", bearer("token"))
        return self.generate(**members)

    def test_a_whole_run(self):
        def body():
            answer = self.call(request_id="good", metadata=bearer("token") + [
                ("traceparent", TRACE)])
            self.check_good(answer)
            self.check_ends()
            self.check_refusals()
            self.check_reloads()
        self.write_tokens()
        self.for_both(body, f"--auth_tokens={self.path}", "--tls_refresh=1s")

    def check_good(self, answer):
        record = self.record_of("good")
        completion = answer.completion
        for name, value in [
                ("message", "request"), ("level", "info"), ("code", "OK"),
                ("tenant", "alpha"), ("trace_id", TRACE_ID),
                ("parent_span_id", SPAN_ID), ("path", "two_stage"),
                ("finish_reason", "length"), ("completion_tokens", 8),
                ("prompt_tokens", completion.usage.prompt_tokens),
                ("cached_prompt_tokens",
                 completion.usage.cached_prompt_tokens)]:
            self.assertEqual(record[name], value, name)
        self.assertRegex(record["peer"], r"^ipv4:127\.0\.0\.1:\d+$")
        for name in ("queue", "prefill", "migration", "decode", "ttft"):
            self.assertAlmostEqual(record[f"{name}_seconds"],
                                   getattr(completion.timings, name), places=5)
        self.assertAlmostEqual(
            record["queue_seconds"] + record["prefill_seconds"],
            record["ttft_seconds"], delta=1e-4)
        self.assertGreater(record["decode_seconds"], 0)
        whole = record["ttft_seconds"] + record["decode_seconds"]
        self.assertGreaterEqual(record["seconds"], whole - 1e-4)
        self.assertLess(record["seconds"], whole + 5)

    def check_ends(self):
        call = self.stub.Generate(
            request(max_tokens=LONG, request_id="cancelled"),
            metadata=bearer("token"))
        next(call)
        duplicate = self.call(request_id="cancelled")
        self.assertEqual(duplicate.error.code(),
                         grpc.StatusCode.ALREADY_EXISTS)
        self.assertTrue(wait_until(lambda: [
            r for r in self.records("request refused")
            if r["code"] == "ALREADY_EXISTS"]))
        call.cancel()
        self.assertTrue(wait_until(lambda: [
            r for r in self.records("request")
            if (r["request_id"], r["code"]) == ("cancelled", "CANCELLED")]))
        late = self.late_record()
        self.assertGreater(late["completion_tokens"], 0)
        self.assertAlmostEqual(late["seconds"], 0.2, delta=3)

    def late_record(self):
        """A client cancels when the deadline has passed, which may come before
        the server's own clock says so.
        """
        for number in range(20):
            self.call(request_id=f"late{number}", max_tokens=LONG, timeout=0.2)
            record = self.record_of(f"late{number}")
            if record["code"] == "DEADLINE_EXCEEDED":
                return record
            self.assertEqual(record["code"], "CANCELLED")
        return self.fail("never DEADLINE_EXCEEDED")

    def check_refusals(self):
        for code, reason, members in [
                ("UNAUTHENTICATED", None, {"metadata": bearer("wrong")}),
                ("PERMISSION_DENIED", "permission", {"priority": 5}),
                ("INVALID_ARGUMENT", "invalid_argument", {"text": ""})]:
            answer = self.call(**members)
            self.assertEqual(answer.error.code().name, code)
            found = wait_until(lambda: [
                r for r in self.records("request refused")
                if r["code"] == code])
            self.assertEqual(len(found), 1, code)
            self.assertEqual(found[0].get("reason"), reason)
            self.assertEqual(found[0]["error"], answer.error.details())
            self.assertEqual(found[0].get("tenant"),
                             None if code == "UNAUTHENTICATED" else "alpha")
            self.assertLess(found[0]["seconds"], CALL_SECONDS)

    def check_reloads(self):
        self.write_tokens("second")
        self.assertTrue(wait_until(lambda: any(
            r["message"].startswith("read the tokens again")
            for r in self.records())))
        write(self.path, b"{")
        self.assertTrue(wait_until(lambda: any(
            r["level"] == "error" and "tokens stay" in r["message"]
            for r in self.records())))
        self.write_tokens()  # for the other format


class TraceTest(LogCase):

    def test_trace_contexts(self):
        good = [TRACE, f"00-{TRACE_ID}-{SPAN_ID}-00",
                f"01-{TRACE_ID}-{SPAN_ID}-01-more"]
        bad = ["", "x", TRACE[:-1], TRACE + "0", TRACE.upper(),
               f"ff-{TRACE_ID}-{SPAN_ID}-01", f"00-{'0' * 32}-{SPAN_ID}-01",
               f"00-{TRACE_ID}-{'0' * 16}-01", TRACE.replace("-", "_"),
               f"00-{TRACE_ID}-{SPAN_ID}-01-more", TRACE[:40] + '"}' + TRACE]
        self.serve_log("json")
        for number, header in enumerate(good + bad):
            answer = self.generate(request_id=f"r{number}", max_tokens=1,
                                   metadata=[("traceparent", header)])
            self.assertIsNone(answer.error)
            record = self.record_of(f"r{number}")
            if header in good:
                self.assertEqual((record["trace_id"], record["parent_span_id"]),
                                 (TRACE_ID, SPAN_ID))
            else:
                self.assertNotIn("trace_id", record, header)
                self.assertNotIn("parent_span_id", record, header)
        self.generate(request_id="none", max_tokens=1)
        self.assertNotIn("trace_id", self.record_of("none"))
        # A refused request has its trace, too.
        self.generate(text="", metadata=[("traceparent", TRACE)])
        self.assertTrue(wait_until(lambda: [
            r for r in self.records("request refused")
            if r.get("trace_id") == TRACE_ID]))
        self.assert_stops(self.server)


class PrivacyTest(LogCase):

    def say_the_marker(self):
        """In every field and kind of call that takes a text."""
        text = f"Please tell of the {MARKER}."
        self.assertIsNone(self.generate(text=text).error)
        ids = self.stub.Tokenize(pb2.TokenizeRequest(text=text)).ids
        self.assertIn(MARKER, self.stub.Detokenize(
            pb2.DetokenizeRequest(ids=ids)).text)
        self.assertIsNone(self.generate(tokens=pb2.TokenIds(ids=ids)).error)
        bad = request(text=text)
        bad.sampling.top_p = 0
        stop = request(text=text)
        stop.limits.stop.append(MARKER * 99)  # longer than is allowed
        twice = request(text=text, request_id="same", max_tokens=LONG)
        running = self.stub.Generate(twice)
        next(running)
        for wrong in (bad, stop, twice, request(text=text * 2000)):
            self.assertIsNotNone(Answer(self.stub.Generate(wrong)).error)
        running.cancel()
        late = self.stub.Generate(request(text=text, max_tokens=LONG),
                                  timeout=0.1)
        self.assertIsNotNone(Answer(late).error)
        with Connection(self.server.address()) as raw:
            broken = b"\x12\x20" + MARKER.encode() + b"\xff\xfe" + b"x" * 16
            raw.send(frame(http2.HEADERS, http2.END_HEADERS, 1,
                           http2.call_headers()),
                     frame(http2.DATA, http2.END_STREAM, 1,
                           b"\0\0\0\0" + bytes([len(broken)]) + broken))
            raw.wait_for(http2.HEADERS)
        self.assertTrue(wait_until(
            lambda: len(self.records("request")) >= 4 and
            len(self.records("request refused")) >= 5))

    def test_prompts_stay_out_of_the_log(self):
        def body():
            self.say_the_marker()
            self.assertNotIn(MARKER, "\n".join(self.server.lines))
            self.assertNotIn("Please tell", "\n".join(self.server.lines))
        self.for_both(body)

    def test_the_operator_may_want_them(self):
        def body():
            self.say_the_marker()
            said = [r for r in self.records("request") if "prompt" in r]
            self.assertEqual(len(said), len(self.records("request")))
            self.assertEqual(sum(MARKER in str(r["prompt"]) for r in said),
                             len(said) - 1)  # one came as token ids
        self.for_both(body, "--log_prompts")

    def test_no_lines_at_all(self):
        def body():
            before = len(self.server.lines)
            self.assertIsNone(self.generate(text=MARKER).error)
            self.assertIsNotNone(self.generate(text="").error)
            time.sleep(0.2)
            self.assertEqual(self.server.lines[before:], [])
        self.for_both(body, "--log_requests=false", "--log_prompts")


class ForgeryTest(LogCase):
    """What a client sends is a value in a line, and never a line."""

    def test_request_ids_and_prompts(self):
        def body():
            for text in HOSTILE:
                self.assertIsNone(self.generate(
                    request_id=text, max_tokens=1).error)
                self.assertEqual(self.record_of(text)["code"], "OK")
            for number, text in enumerate(HOSTILE_PROMPTS):
                self.assertIsNone(self.generate(
                    text=text, request_id=f"p{number}", max_tokens=1).error)
                self.assertEqual(self.record_of(f"p{number}")["prompt"], text)
            for text in ("a\nb", "é", "x" * 129, "\x7f"):
                error = self.generate(request_id=text).error
                self.assertEqual(error.code(),
                                 grpc.StatusCode.INVALID_ARGUMENT)
            # One line for each, and no more.
            self.assertEqual(len(self.records("request")),
                             len(HOSTILE) + len(HOSTILE_PROMPTS))
            self.assertFalse([r for r in self.records()
                              if r["message"] == "forged"])
        self.for_both(body, "--log_prompts")

    def test_a_long_prompt_is_cut(self):
        """In the middle of a character, here."""
        head = "in" * 8191 + "x"
        def body():
            self.assertIsNone(self.generate(
                text=head + "é" + "in" * 1000 + "the end", request_id="r",
                max_tokens=1).error)
            prompt = self.record_of("r")["prompt"]
            self.assertEqual(prompt[:-1], head)
            self.assertIn(prompt[-1], ("\ufffd", "\udcc3"))
        self.for_both(body, "--log_prompts")

    def test_bytes_in_headers(self):
        def body():
            evil = [TRACE.encode() + b"\n" + FORGED.encode(),
                    b"\r\n\x00\xff\xfe\x1b]0;x\x07", b'"}\n{"a":"']
            for value in evil:
                for name in ("traceparent", "authorization", "user-agent",
                             "x-request-id", "x\ny", ":path", ":authority"):
                    self.send(name, value)
            self.assertIsNone(self.generate(request_id="last").error)
            self.record_of("last")
            # Some reach the service, and are served or refused there.
            self.assertGreater(len(self.records("request")), 1)
            for record in self.records():
                self.assertNotIn("forged", record["message"])
                self.assertNotIn("trace_id", record)
        self.for_both(body)

    def send(self, name, value):
        with Connection(self.server.address()) as raw:
            raw.offer(
                frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers(
                    extra=[(name, value)])) +
                frame(http2.DATA, http2.END_STREAM, 1,
                      http2.message(request(max_tokens=1))))
            for kind, flags, _, _ in raw.frames(0.3):
                if kind in (http2.RST_STREAM, http2.GOAWAY) or (
                        kind == http2.HEADERS and flags & http2.END_STREAM):
                    return


class FloodTest(LogCase):

    def test_refusals_do_not_fill_the_disk(self):
        num = 600
        def body():
            begin = time.monotonic()
            for _ in range(num):
                self.assertIsNotNone(self.generate(text="").error)
            seconds = time.monotonic() - begin
            self.assertGreater(num / seconds, 2 * REFUSALS_PER_SECOND,
                               "too slow a machine")
            lines = len(self.records("request refused"))
            self.assertLessEqual(lines,
                                 REFUSALS_PER_SECOND * (int(seconds) + 2))
            time.sleep(1.1)
            lines = len(self.records("request refused"))
            # The next line says how many have none.
            self.assertIsNotNone(self.generate(text="").error)
            self.assertTrue(wait_until(
                lambda: len(self.records("request refused")) > lines))
            refused = self.records("request refused")
            self.assertGreater(refused[-1]["lines_left_out"], 0)
            self.assertEqual(
                len(refused) + sum(r.get("lines_left_out", 0)
                                   for r in refused), num + 1)
            # Requests that were served have all their lines.
            for i in range(3 * REFUSALS_PER_SECOND):
                self.assertIsNone(self.generate(
                    request_id=f"good{i}", max_tokens=1).error)
            self.assertTrue(wait_until(
                lambda: len(self.records("request")) ==
                3 * REFUSALS_PER_SECOND))
        self.for_both(body)


class StuckReaderTest(LogCase):

    def test_a_log_that_nobody_reads_stops_no_request(self):
        self.serve_log("json", "--log_prompts")
        self.server.reading.clear()
        prompt, num = "\x01" * 10_000, 85  # six bytes each in a line
        for i in range(num):
            self.assertIsNone(self.generate(
                text=prompt, request_id=f"r{i}", max_tokens=1).error)
        self.server.reading.set()
        self.assertIsNone(self.generate(request_id="last").error)
        self.record_of("last")
        dropped = sum(r["lines_left_out"] for r in self.records(
            "lines of the log were dropped"))
        self.assertGreater(dropped, 0)
        self.assertEqual(len(self.records("request")) + dropped, num + 1)
        self.assert_stops(self.server)


if __name__ == "__main__":
    servers.main()

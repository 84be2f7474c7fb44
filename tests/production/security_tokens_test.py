"""Who may call: tokens, and the file that they are read from."""

import hashlib
import os

import grpc

import servers
from authorities import write
from servers import (CALL_SECONDS, LONG, Answer, bearer, harness, health_grpc,
                     health_pb2, pb2, request, tokens_text, wait_until)

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
CALLS = "overfill_unauthenticated_calls_total"
STAYS = "the tokens stay as they were"
TOKEN = "right-token-of-alpha"

# (why, metadata)
WRONG = [
    ("missing", []),
    ("missing", [("x-authorization", f"Bearer {TOKEN}")]),
    ("missing", [("authorization-bin", f"Bearer {TOKEN}".encode())]),
    ("malformed", [("authorization", "")]),
    ("malformed", [("authorization", TOKEN)]),
    ("malformed", [("authorization", "Bearer")]),
    ("malformed", [("authorization", f"Basic {TOKEN}")]),
    ("malformed", [("authorization", f"Bearer:{TOKEN}")]),
    ("malformed", [("authorization", "Bearer " + "x" * 5000)]),
    ("malformed", bearer(TOKEN) + bearer(TOKEN)),
    ("malformed", bearer("wrong") + bearer(TOKEN)),
    ("unknown", bearer("wrong")),
    ("unknown", bearer("")),
    ("unknown", bearer(TOKEN + "x")),
    ("unknown", bearer(TOKEN[:-1])),
    ("unknown", bearer(TOKEN.upper())),
    ("unknown", bearer("alpha")),
    ("unknown", bearer("\\x00\"'; {} ~")),
]


class TokensCase(servers.Case):

    def setUp(self):
        self.path = os.path.join(harness.work_dir(self.id()), "tokens.json")
        self.tenants = {"alpha": ([TOKEN], {}), "beta": (["other-token"], {})}
        self.write_tokens()
        self.server = self.serve(f"--auth_tokens={self.path}",
                                 "--tls_refresh=1s")
        self.stub = self.server.stub

    def write_tokens(self):
        write(self.path, tokens_text(self.tenants))

    def generate(self, token=TOKEN, **members):
        return Answer(self.stub.Generate(
            request(**members), timeout=CALL_SECONDS, metadata=bearer(token)))

    def is_known(self, token):
        try:
            self.stub.GetModelInfo(pb2.GetModelInfoRequest(),
                                   timeout=CALL_SECONDS, metadata=bearer(token))
        except grpc.RpcError as error:
            self.assertEqual(error.code(), UNAUTHENTICATED)
            return False
        return True

    def calls(self):
        """One of each kind, by its name: takes metadata."""
        def call(method, message):
            return lambda metadata: method(message, timeout=CALL_SECONDS,
                                           metadata=metadata)
        return {
            "Generate": lambda metadata: list(self.stub.Generate(
                request(max_tokens=2), timeout=CALL_SECONDS,
                metadata=metadata)),
            "Tokenize": call(self.stub.Tokenize,
                             pb2.TokenizeRequest(text="a")),
            "Detokenize": call(self.stub.Detokenize,
                               pb2.DetokenizeRequest(ids=[1])),
            "GetModelInfo": call(self.stub.GetModelInfo,
                                 pb2.GetModelInfoRequest()),
            "Cancel": call(self.stub.Cancel,
                           pb2.CancelRequest(request_id="mine")),
        }


class TokensTest(TokensCase):

    def test_every_method_wants_one(self):
        methods = {method.name for method in pb2.DESCRIPTOR.services_by_name[
            "Inference"].methods}
        calls = self.calls()
        self.assertEqual(set(calls), methods)
        for number, (name, call) in enumerate(calls.items(), 1):
            with self.subTest(name):
                self.assert_refused(lambda: call([]), UNAUTHENTICATED)
                self.assertEqual(
                    self.server.value(CALLS, reason="missing"), number)
                if name == "Cancel":  # of nothing, with a token
                    self.assert_refused(lambda: call(bearer(TOKEN)),
                                        grpc.StatusCode.NOT_FOUND)
                else:
                    call(bearer(TOKEN))
        self.assertEqual(self.server.value(CALLS), len(calls))
        self.assertEqual(self.server.value("overfill_requests_total"), 1)
        self.assert_stops(self.server)

    def test_wrong_ones(self):
        words = {"missing": set(), "malformed": set(), "unknown": set()}
        for why, metadata in WRONG:
            with self.subTest(metadata):
                before = self.server.value(CALLS, reason=why)
                for call in self.calls().values():
                    error = self.assert_refused(lambda: call(metadata),
                                                UNAUTHENTICATED)
                    words[why].add(error.details())
                    self.assert_tells_nothing(error)
                self.assertEqual(self.server.value(CALLS, reason=why),
                                 before + len(self.calls()))
        # The same for every wrong one: they tell nothing of the right one.
        self.assertEqual(words["unknown"], {"the token is not known"})
        self.assertEqual(len(words["missing"] | words["malformed"]), 1)
        self.assertEqual(self.server.value(CALLS),
                         len(WRONG) * len(self.calls()))
        self.assertEqual(self.server.value("overfill_requests_total"), 0)
        log = "\n".join(self.server.lines)
        for secret in (TOKEN, "wrong", "other-token"):
            self.assertNotIn(secret, log)
        self.assert_stops(self.server)

    def assert_tells_nothing(self, error):
        said = error.details() + "".join(
            f"{key}={value}" for key, value in error.trailing_metadata() or ())
        for part in ("alpha", "beta", "tenant", self.path, "tokens.json",
                     TOKEN, "other-token", "sha256"):
            self.assertNotIn(part, said)

    def test_the_scheme_has_no_case(self):
        self.stub.GetModelInfo(pb2.GetModelInfoRequest(), metadata=[
            ("authorization", f"bEARER {TOKEN}")])

    def test_health_is_open_and_reflection_is_not(self):
        self.assertEqual(self.server.health(), servers.SERVING)
        watch = health_grpc.HealthStub(self.server.channel).Watch(
            health_pb2.HealthCheckRequest(service="overfill.v1.Inference"))
        self.assertEqual(next(watch).status, servers.SERVING)
        watch.cancel()
        reflection = harness.reflection_grpc.ServerReflectionStub(
            self.server.channel)
        ask = harness.reflection_pb2.ServerReflectionRequest(list_services="")
        for metadata in ([], bearer(TOKEN)):
            self.assert_refused(lambda: list(
                reflection.ServerReflectionInfo(
                    iter([ask]), metadata=metadata, timeout=CALL_SECONDS)),
                                grpc.StatusCode.UNIMPLEMENTED)
        # It is there where everyone may call.
        plain = self.serve()
        answers = list(harness.reflection_grpc.ServerReflectionStub(
            plain.channel).ServerReflectionInfo(iter([ask]),
                                                timeout=CALL_SECONDS))
        self.assertIn("overfill.v1.Inference", str(answers))


class TokensReloadTest(TokensCase):

    def reloads(self, outcome):
        return self.server.value("overfill_reloads_total", outcome=outcome,
                                 what="tokens")

    def test_added_and_revoked(self):
        running = self.stub.Generate(request(max_tokens=LONG),
                                     metadata=bearer(TOKEN))
        next(running)
        self.assertFalse(self.is_known("new-token"))
        self.tenants["gamma"] = (["new-token"], {})
        self.write_tokens()
        self.assertTrue(wait_until(lambda: self.is_known("new-token")))
        self.assertIsNone(self.generate("new-token").error)
        self.assertTrue(self.is_known(TOKEN))
        # A rotation: the tenant stays, with another token.
        self.tenants["alpha"] = (["rotated-token"], {})
        self.write_tokens()
        self.assertTrue(wait_until(lambda: not self.is_known(TOKEN)))
        self.assertTrue(self.is_known("rotated-token"))
        self.assertEqual(self.generate(TOKEN).error.code(), UNAUTHENTICATED)
        for _ in range(5):
            next(running)
        # The tenant, too.
        del self.tenants["alpha"]
        self.write_tokens()
        self.assertTrue(wait_until(lambda: not self.is_known("rotated-token")))
        for _ in range(5):
            next(running)
        running.cancel()
        self.assertEqual((self.reloads("ok"), self.reloads("failed")), (3, 0))
        self.assertEqual(
            self.server.count_lines("read the tokens again", 3), 3)
        self.assert_stops(self.server)

    def test_a_bad_file_keeps_the_old_one(self):
        twice = {"alpha": ([TOKEN], {}), "beta": ([TOKEN], {})}
        bad = [b"{", tokens_text(self.tenants)[:-20], tokens_text(twice), None]
        for number, text in enumerate(bad, 1):
            if text is None:
                os.remove(self.path)
            else:
                write(self.path, text)
            self.assertTrue(wait_until(
                lambda: self.reloads("failed") == number))
            self.assertEqual(self.server.count_lines(STAYS, number), number)
            self.assertTrue(self.is_known(TOKEN))
            self.assertFalse(self.is_known("wrong"))
        # Once, however often it looks: the next look is a good one's.
        self.tenants["alpha"][0].append("second-token")
        self.write_tokens()
        self.assertTrue(wait_until(lambda: self.is_known("second-token")))
        self.assertTrue(self.is_known(TOKEN))
        self.assertEqual((self.reloads("ok"), self.reloads("failed")),
                         (1, len(bad)))
        self.assertEqual(self.server.count_lines(STAYS, len(bad)),
                         len(bad))
        log = "\n".join(self.server.lines)
        for secret in (TOKEN, "second-token"):
            self.assertNotIn(secret, log)
            self.assertNotIn(hashlib.sha256(secret.encode()).hexdigest(), log)
        self.assert_stops(self.server)


if __name__ == "__main__":
    servers.main()

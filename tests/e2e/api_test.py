"""The public API, call by call, against the real server."""

import math
import re

import grpc

import harness
from harness import (Answer, bad_fields, checkpoints, details, health_grpc,
                     health_pb2, pb2, pb2_grpc, reflection_grpc,
                     reflection_pb2)

SPECIAL = "<|end_of_text|>"


class GenerateTest(harness.ServerCase):

    def test_streams_deltas_then_one_completion(self):
        # What a reader is too late for comes as one delta: a moment's delay of
        # this process is longer than a small model takes for all of it.
        for _ in range(10):
            answer = self.generate(max_tokens=200)
            if answer.num_deltas > 3:
                break
        completion = answer.completion
        self.assertEqual(len(answer.ids), 200)
        self.assertGreater(answer.num_deltas, 3)
        self.assertEqual(completion.finish_reason, pb2.FINISH_REASON_LENGTH)
        self.assertEqual(completion.usage.completion_tokens, 200)
        timings = completion.timings
        for value in [timings.queue, timings.prefill, timings.migration,
                      timings.decode, timings.ttft]:
            self.assertGreaterEqual(value, 0)
        self.assertGreater(timings.ttft, 0)
        self.assertGreater(timings.decode, 0)
        self.assertLessEqual(timings.queue + timings.prefill,
                             timings.ttft + 1e-3)

    def test_same_request_same_answer(self):
        first = self.generate(max_tokens=40)
        self.assertEqual(self.generate(max_tokens=40).ids, first.ids)

    def test_one_token(self):
        for path in [pb2.DECODE_PATH_TWO_STAGE, pb2.DECODE_PATH_FULL,
                     pb2.DECODE_PATH_PRUNED]:
            answer = self.generate(max_tokens=1, path=path)
            self.assertEqual(len(answer.ids), 1)
            self.assertEqual(answer.completion.usage.completion_tokens, 1)

    def test_token_zero_is_the_full_models(self):
        def first(path):
            return self.generate(max_tokens=1, path=path).ids
        self.assertEqual(first(pb2.DECODE_PATH_TWO_STAGE),
                         first(pb2.DECODE_PATH_FULL))

    def test_unspecified_path_is_two_stage(self):
        self.assertEqual(
            self.generate(max_tokens=30).ids,
            self.generate(max_tokens=30, path=pb2.DECODE_PATH_TWO_STAGE).ids)

    def test_text_equals_its_tokens(self):
        for text in ["Hello there", "grüße, 日本 😀", "a  b\n\n" + SPECIAL]:
            ids = self.stub.Tokenize(pb2.TokenizeRequest(text=text)).ids
            self.assertEqual(
                self.generate(text=text, max_tokens=20).ids,
                self.generate(tokens=pb2.TokenIds(ids=ids), max_tokens=20).ids)
            back = self.stub.Detokenize(pb2.DetokenizeRequest(ids=ids)).text
            self.assertEqual(back, text)

    def test_text_is_the_tokens_text(self):
        answer = self.generate(max_tokens=100)
        # A model may say a control token, which has no text.
        whole = self.stub.Detokenize(pb2.DetokenizeRequest(
            ids=answer.ids, skip_special_tokens=True))
        self.assertEqual(answer.text, whole.text)

    def test_special_text_of_a_user_stays_text(self):
        ids = self.stub.Tokenize(pb2.TokenizeRequest(text=SPECIAL)).ids
        self.assertGreater(len(ids), 1)
        parsed = self.stub.Tokenize(
            pb2.TokenizeRequest(text=SPECIAL, parse_special=True)).ids
        self.assertEqual(len(parsed), 1)
        usage = [
            self.generate(text=SPECIAL, parse_special=parse, max_tokens=1)
            .completion.usage.prompt_tokens for parse in (False, True)]
        self.assertEqual(usage, [len(ids), 1])

    def test_seeds_draw_the_same_answer_again(self):
        request = self.request(max_tokens=30)
        request.sampling.temperature = 1.5
        free = self.generate(request)
        request.sampling.seed = free.completion.seed
        again = self.generate(request)
        self.assertEqual(again.ids, free.ids)
        self.assertEqual(again.completion.seed, free.completion.seed)
        request.sampling.seed += 1
        self.assertNotEqual(self.generate(request).ids, free.ids)

    def test_logprobs(self):
        request = self.request(max_tokens=10)
        request.output.logprobs = 3
        answer = self.generate(request)
        self.assertEqual(len(answer.logprobs), 10)
        for token, logprobs in zip(answer.ids, answer.logprobs):
            self.assertEqual(len(logprobs.top), 3)
            # Greedy: the chosen one is the best one.
            self.assertEqual(logprobs.top[0].token_id, token)
            self.assertAlmostEqual(logprobs.top[0].logprob, logprobs.logprob,
                                   places=5)
            values = [top.logprob for top in logprobs.top]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertTrue(all(v <= 0 and math.isfinite(v) for v in values))
        request.output.logprobs = 0
        answer = self.generate(request)
        self.assertEqual(len(answer.logprobs), 10)
        self.assertEqual(len(answer.logprobs[0].top), 0)
        self.assertEqual(len(self.generate(max_tokens=5).logprobs), 0)

    def test_logit_bias_forces_a_token(self):
        request = self.request(max_tokens=5)
        request.sampling.logit_bias[ord("!") - 33] = 100
        self.assertEqual(self.generate(request).ids, [ord("!") - 33] * 5)

    def test_eos_ends_an_answer(self):
        request = self.request(max_tokens=50)
        request.limits.ignore_eos = False
        eos = checkpoints.NUM_TOKENS - 2
        request.sampling.logit_bias[eos] = 100
        answer = self.generate(request)
        self.assertEqual(answer.completion.finish_reason,
                         pb2.FINISH_REASON_EOS)
        self.assertEqual(answer.completion.usage.completion_tokens, 1)
        self.assertEqual(answer.text, "")
        # Banned before min_tokens, however much is added to it.
        request.limits.min_tokens = 4
        answer = self.generate(request)
        self.assertEqual(answer.completion.usage.completion_tokens, 5)
        self.assertNotIn(eos, answer.ids[:4])

    def test_stop_strings(self):
        # Letters for sure: the bias leaves no other tokens a chance.
        request = self.request(max_tokens=60)
        for letter in b"abc":
            request.sampling.logit_bias[letter - 33] = 50
        request.sampling.temperature = 1.0
        request.sampling.seed = 3
        whole = self.generate(request)
        stop = whole.text[7:10]
        where = whole.text.index(stop)
        request.limits.stop.append(stop)
        answer = self.generate(request)
        self.assertEqual(answer.text, whole.text[:where])
        self.assertEqual(answer.completion.finish_reason,
                         pb2.FINISH_REASON_STOP)
        self.assertEqual(answer.completion.stop, stop)
        request.limits.include_stop = True
        self.assertEqual(self.generate(request).text,
                         whole.text[:where + len(stop)])

    def test_stop_token_ids(self):
        whole = self.generate(max_tokens=20)
        request = self.request(max_tokens=20)
        request.limits.stop_token_ids.append(whole.ids[5])
        answer = self.generate(request)
        self.assertEqual(answer.completion.finish_reason,
                         pb2.FINISH_REASON_STOP)
        self.assertEqual(answer.completion.stop_token_id, whole.ids[5])
        first = whole.ids.index(whole.ids[5])
        self.assertEqual(answer.completion.usage.completion_tokens, first + 1)

    def test_unset_max_tokens_is_what_the_context_has_left(self):
        limit = self.stub.GetModelInfo(
            pb2.GetModelInfoRequest()).limits.max_sequence_tokens
        prompt = pb2.TokenIds(ids=[5] * (limit - 7))
        answer = self.generate(tokens=prompt, max_tokens=None)
        self.assertEqual(answer.completion.usage.completion_tokens, 7)
        self.assertEqual(answer.completion.finish_reason,
                         pb2.FINISH_REASON_LENGTH)

    def test_duplicate_request_ids(self):
        call = self.stub.Generate(self.request(max_tokens=5000,
                                               request_id="mine"))
        next(call)
        second = self.generate(request_id="mine")
        self.assertEqual(second.error.code(), grpc.StatusCode.ALREADY_EXISTS)
        call.cancel()
        self.assertTrue(harness.wait_until(lambda: self.server.live() == 0))
        # Free again once its request has ended.
        self.assertIsNone(self.generate(request_id="mine").error)


class BadInputTest(harness.ServerCase):

    def check(self, field, edit=None, request=None):
        if request is None:
            request = self.request()
            edit(request)
        error = self.generate(request).error
        self.assertIsNotNone(error, field)
        self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT, field)
        self.assertEqual(bad_fields(error), [field])
        self.assertIn(field, error.details())
        self.assertNotIn("\n", error.details())

    def test_each_kind(self):
        def edit_sampling(name, value):
            return lambda r: setattr(r.sampling, name, value)

        def edit_limits(name, value):
            return lambda r: setattr(r.limits, name, value)

        nan, inf = math.nan, math.inf
        vocab = checkpoints.NUM_TOKENS
        for field, edit in [
                ("prompt", lambda r: r.ClearField("text")),
                ("text", lambda r: setattr(r, "text", "")),
                ("text", lambda r: setattr(r, "text", "word " * 20000)),
                ("text", lambda r: setattr(r, "text", "x" * 3_900_000)),
                ("tokens.ids", lambda r: r.tokens.SetInParent()),
                ("tokens.ids[0]", lambda r: r.tokens.ids.append(-1)),
                ("tokens.ids[1]", lambda r: r.tokens.ids.extend([1, vocab])),
                ("tokens.ids[0]", lambda r: r.tokens.ids.append(2**31 - 1)),
                ("tokens.ids", lambda r: r.tokens.ids.extend([1] * 20000)),
                ("limits.max_tokens", edit_limits("max_tokens", 0)),
                ("limits.max_tokens", edit_limits("max_tokens", -1)),
                ("limits.max_tokens", edit_limits("max_tokens", 2**31 - 1)),
                ("limits.min_tokens", edit_limits("min_tokens", -1)),
                ("limits.min_tokens", edit_limits("min_tokens", 9)),
                ("limits.stop", lambda r: r.limits.stop.extend(["x"] * 10000)),
                ("limits.stop[0]", lambda r: r.limits.stop.append("x" * 2**20)),
                ("limits.stop[0]", lambda r: r.limits.stop.append("")),
                ("limits.stop_token_ids[0]",
                 lambda r: r.limits.stop_token_ids.append(vocab)),
                ("limits.stop_token_ids",
                 lambda r: r.limits.stop_token_ids.extend([1] * 65)),
                ("output.logprobs", lambda r: setattr(r.output, "logprobs",
                                                      21)),
                ("output.logprobs", lambda r: setattr(r.output, "logprobs",
                                                      -1)),
                ("n", lambda r: setattr(r, "n", 65)),
                ("n", lambda r: setattr(r, "n", 2**32 - 1)),
                ("path", lambda r: setattr(r, "path", 77)),
                ("priority", lambda r: setattr(r, "priority", 101)),
                ("request_id", lambda r: setattr(r, "request_id", "x" * 129)),
                ("request_id", lambda r: setattr(r, "request_id", "a\x00b")),
                ("sampling.logit_bias[-1]",
                 lambda r: r.sampling.logit_bias.update({-1: 1.0})),
                ("sampling.logit_bias[3]",
                 lambda r: r.sampling.logit_bias.update({3: nan})),
                ("sampling.logit_bias[3]",
                 lambda r: r.sampling.logit_bias.update({3: 101})),
                ("sampling.logit_bias", lambda r: r.sampling.logit_bias.update(
                    {i: 0.5 for i in range(1025)})),
                ("sampling.top_k", edit_sampling("top_k", -1)),
        ] + [(f"sampling.{name}", edit_sampling(name, value))
             for name, values in {
                 "temperature": [-1, nan, inf], "top_p": [0, -1, 1.5, nan],
                 "min_p": [-0.1, 1.1, nan, inf],
                 "repetition_penalty": [0, -1, nan, inf],
                 "presence_penalty": [-2.1, 2.1, nan],
                 "frequency_penalty": [-2.1, 2.1, nan]}.items()
             for value in values]:
            with self.subTest(field):
                self.check(field, edit)
        self.assert_serves()

    def raw(self, method, data):
        call = self.server.channel.unary_stream(
            f"/overfill.v1.Inference/{method}",
            request_serializer=lambda message: message,
            response_deserializer=lambda message: message)
        with self.assertRaises(grpc.RpcError) as caught:
            list(call(data, timeout=harness.CALL_SECONDS))
        return caught.exception

    def test_bytes_that_are_no_message(self):
        for method in ["Generate", "Tokenize", "Detokenize", "GetModelInfo"]:
            error = self.raw(method, b"\xff" * 8)
            self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
        error = self.raw("Generate", b"\x12\x02\xc3\x28")
        self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(bad_fields(error), ["text"])
        self.assertEqual(self.raw("Nonsense", b"").code(),
                         grpc.StatusCode.UNIMPLEMENTED)
        self.assert_serves()

    def test_message_over_the_limit(self):
        error = self.generate(text="x" * 5_000_000).error
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assert_serves()

    def test_message_that_unpacks_to_more(self):
        """Refused while it is small: gRPC would unpack it first."""
        def peak():
            with open(f"/proc/{self.server.process.pid}/status") as file:
                return int(re.search(r"VmHWM:\s*(\d+) kB", file.read())[1])
        before = peak()
        request = self.request(text="x" * 200_000_000)
        error = Answer(self.stub.Generate(
            request, timeout=harness.CALL_SECONDS,
            compression=grpc.Compression.Gzip)).error
        self.assertEqual(error.code(), grpc.StatusCode.UNIMPLEMENTED)
        self.assertLess(peak() - before, 100_000)
        self.assert_serves()

    def test_tokenize_and_detokenize_check_too(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.Detokenize(pb2.DetokenizeRequest(ids=[1, -1]))
        self.assertEqual(bad_fields(caught.exception), ["ids[1]"])
        self.assertEqual(
            list(self.stub.Tokenize(pb2.TokenizeRequest(text="")).ids), [])


class FullQueueTest(harness.ServerCase):
    flags = ["--max_decode_batch=1", "--max_queued_requests=1"]

    def test_full_queue_says_when_to_retry(self):
        calls = [self.stub.Generate(self.request(max_tokens=10000))
                 for _ in range(4)]
        errors = []
        for call in calls:
            try:
                next(call)
            except grpc.RpcError as error:
                errors.append(error)
            if errors:
                break
        self.assertTrue(errors)
        self.assertEqual(errors[0].code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        retry = details(errors[0], harness.details_pb2.RetryInfo)
        self.assertGreater(retry.retry_delay.ToNanoseconds(), 0)
        for call in calls:
            call.cancel()


class Int8DecodeTest(harness.ServerCase):
    flags = ["--decode_weights=int8"]

    def test_answers_and_says_so(self):
        events = list(self.stub.Generate(self.request(max_tokens=20)))
        self.assertEqual(events[-1].completion.usage.completion_tokens, 20)
        info = self.stub.GetModelInfo(pb2.GetModelInfoRequest())
        self.assertEqual(info.full.weights, "bf16")
        self.assertEqual(info.pruned.weights, "int8")
        series = [s for s in self.server.metrics()
                  if s.startswith("overfill_model_info")]
        self.assertIn('weights="bf16,int8"', series[0])


class AboutTest(harness.ServerCase):

    def test_model_info(self):
        info = self.stub.GetModelInfo(pb2.GetModelInfoRequest())
        self.assertEqual(info.full.name, "full")
        self.assertEqual(info.pruned.name, "decode")
        self.assertEqual(info.full.architecture, "LlamaForCausalLM")
        self.assertGreater(info.full.hidden_size, info.pruned.hidden_size)
        self.assertGreater(info.full.num_parameters,
                           info.pruned.num_parameters)
        # K and V of three layers, two heads of 64 dimensions in bf16.
        self.assertEqual(info.full.kv_bytes_per_token, 2 * 3 * 2 * 64 * 2)
        self.assertRegex(info.pair_digest, "^[0-9a-f]{64}$")
        self.assertNotEqual(info.full.digest, info.pruned.digest)
        self.assertEqual(info.kv_map, "identity")
        self.assertEqual(info.limits.max_request_bytes, 4 << 20)
        self.assertEqual(info.limits.kv_blocks,
                         self.server.totals()["shared"])
        series = [s for s in self.server.metrics()
                  if s.startswith("overfill_model_info")]
        self.assertIn(f'pair_digest="{info.pair_digest}"', series[0])
        self.assertIn(info.pair_digest, "\n".join(self.server.lines))

    def test_health(self):
        stub = health_grpc.HealthStub(self.server.channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ["", "overfill.v1.Inference"]:
            request = health_pb2.HealthCheckRequest(service=service)
            self.assertEqual(stub.Check(request).status, serving)
            watch = stub.Watch(request)
            self.assertEqual(next(watch).status, serving)
            watch.cancel()
        with self.assertRaises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="no.such"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_reflection(self):
        stub = reflection_grpc.ServerReflectionStub(self.server.channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services="*"),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="overfill.v1.Inference")]
        services, file = list(stub.ServerReflectionInfo(iter(requests)))
        names = [s.name for s in services.list_services_response.service]
        self.assertIn("overfill.v1.Inference", names)
        protos = file.file_descriptor_response.file_descriptor_proto
        self.assertIn(b"GenerateRequest", b"".join(protos))


class MetricsTest(harness.ServerCase):

    def test_deltas_of_one_request(self):
        before = self.server.metrics()
        answer = self.generate(max_tokens=20)
        self.assertTrue(harness.wait_until(lambda: self.server.live() == 0))
        after = self.server.metrics()

        def delta(series):
            return after[series] - before.get(series, 0)

        path = 'path="two_stage"'
        usage = answer.completion.usage
        for series, want in {
                f'overfill_requests_total{{outcome="length",{path}}}': 1,
                f"overfill_prompt_tokens_total{{{path}}}": usage.prompt_tokens,
                f"overfill_completion_tokens_total{{{path}}}": 20,
                f"overfill_ttft_seconds_count{{{path}}}": 1,
                f"overfill_queue_seconds_count{{{path}}}": 1,
                f"overfill_inter_token_seconds_count{{{path}}}": 19,
                f"overfill_time_per_output_token_seconds_count{{{path}}}": 1,
                f"overfill_e2e_seconds_count{{{path}}}": 1,
                'overfill_step_seconds_count{pool="prefill"}': 1,
                'overfill_step_seconds_count{pool="decode"}': 19,
                'overfill_step_rows_sum{kind="prompt",pool="prefill"}':
                    usage.prompt_tokens,
                'overfill_step_rows_sum{kind="decode",pool="decode"}': 19,
                'overfill_migration_seconds_count{kind="handoff"}': 1,
        }.items():
            self.assertEqual(delta(series), want, series)

    def test_state_while_running(self):
        call = self.stub.Generate(self.request(max_tokens=10000))
        next(call)
        metrics = self.server.metrics()
        self.assertEqual(self.server.live(), 1)
        self.assertEqual(metrics['overfill_requests{state="decoding"}'], 1)
        self.assertGreater(metrics['overfill_kv_use_ratio{store="shared"}'], 0)
        self.assertGreater(
            metrics['overfill_kv_blocks{store="shared",state="owned"}'], 0)
        call.cancel()

    def test_rejections(self):
        series = 'overfill_requests_rejected_total{reason="invalid_argument"}'
        before = self.server.metrics().get(series, 0)
        self.generate(max_tokens=0)
        self.assertEqual(self.server.metrics()[series], before + 1)


if __name__ == "__main__":
    harness.main()

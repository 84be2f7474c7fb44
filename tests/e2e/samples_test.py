"""Several answers drawn from one prompt."""

import grpc

import harness
from harness import Answer, details, pb2


class SamplesTest(harness.ServerCase):
    """n answers from one prompt."""

    def sampled(self, n, max_tokens=30):
        request = self.request(max_tokens=max_tokens, n=n)
        request.sampling.temperature = 1.5
        request.sampling.seed = 11
        return request

    def test_each_has_its_deltas_and_its_completion(self):
        for path in [pb2.DECODE_PATH_TWO_STAGE, pb2.DECODE_PATH_FULL,
                     pb2.DECODE_PATH_PRUNED]:
            request = self.sampled(5)
            request.path = path
            answer = self.generate(request)
            self.assertIsNone(answer.error)
            self.assertEqual(sorted(c.index for c in answer.completions),
                             list(range(5)))
            for completion in answer.completions:
                self.assertEqual(len(answer.tokens[completion.index]), 30)
                self.assertEqual(completion.usage.completion_tokens, 30)
                self.assertEqual(completion.finish_reason,
                                 pb2.FINISH_REASON_LENGTH)
            # Drawn each on its own.
            self.assertEqual(len(set(map(tuple, answer.tokens.values()))), 5)

    def test_token_zero_is_drawn_from_one_row(self):
        """All first tokens come of the same logits, bit by bit; later ones may
        differ in what bf16 leaves open between batches."""
        one = self.generate(max_tokens=20)
        three = self.generate(max_tokens=20, n=3)
        self.assertEqual([three.tokens[i][0] for i in range(3)],
                         [one.ids[0]] * 3)
        request = self.sampled(3, max_tokens=1)
        first, again = self.generate(request), self.generate(request)
        self.assertEqual(first.tokens, again.tokens)
        # A sample is what it is, however many there are.
        request.n = 1
        self.assertEqual(self.generate(request).ids, first.tokens[0])
        request.n = 8
        more = self.generate(request)
        self.assertEqual([more.tokens[i] for i in range(3)],
                         [first.tokens[i] for i in range(3)])
        self.assertGreater(len(set(map(tuple, more.tokens.values()))), 1)

    def test_zero_means_one(self):
        self.assertEqual(self.generate(n=0).ids, self.generate(n=1).ids)

    def test_one_token_each(self):
        answer = self.generate(self.sampled(4, max_tokens=1))
        self.assertEqual([len(answer.tokens[i]) for i in range(4)], [1] * 4)

    def test_cancel_ends_all(self):
        call = self.stub.Generate(self.sampled(8, max_tokens=10000))
        next(call)
        call.cancel()
        self.assert_blocks_are_home(10)

    def test_usage_of_an_error_is_of_all(self):
        server = self.server
        request = self.sampled(4, max_tokens=14000)
        request.output.logprobs = 20
        call = server.narrow_stub().Generate(request)
        next(call)
        self.assert_blocks_are_home(2 * harness.CALL_SECONDS)
        answer = Answer(call)
        self.assertEqual(answer.error.code(),
                         grpc.StatusCode.RESOURCE_EXHAUSTED)
        usage = details(answer.error, pb2.Completion).usage
        self.assertGreaterEqual(usage.completion_tokens, len(answer.ids))


if __name__ == "__main__":
    harness.main()

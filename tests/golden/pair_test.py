"""The three paths of a pair beside the reference's, for every KV map."""

import checkpoints
import golden_case
import reference
from golden_case import (FAULTS, LOGIT_TOLERANCE, MAX_STEP_ROWS, MAX_TIE_RATE,
                         PairCase, random_llama, relative_error)

PATHS = ["two_stage", "full", "pruned"]


class PairTest(PairCase):
    """Logits, greedy tokens, and the KV that is handed over."""

    # Over all pairs: one alone has too few tokens for a rate.
    num_tokens = {precision: 0 for precision in LOGIT_TOLERANCE}
    num_ties = {precision: 0 for precision in LOGIT_TOLERANCE}

    @classmethod
    def tearDownClass(cls):
        for precision, num_tokens in cls.num_tokens.items():
            rate = cls.num_ties[precision] / max(1, num_tokens)
            print(f"{precision}: {cls.num_ties[precision]} ties in "
                  f"{num_tokens} tokens", flush=True)
            assert rate <= MAX_TIE_RATE, f"{precision}: {rate:.4f} are ties"

    def check_pair(self, copies=(False,), num_tokens=24, num_prompts=4):
        prompts = self.prompts(num_prompts - 1) + [self.whole_block_prompt()]
        free = golden_case.requests_of(prompts)
        forced = golden_case.requests_of(prompts,
                                         self.answers(prompts, num_tokens))
        runs = [{"path": path, "max_tokens": num_tokens,
                 "max_step_rows": MAX_STEP_ROWS, "schedule_seed": schedule,
                 "requests": requests}
                for path, schedule, requests in [
                    ("two_stage", 0, free),
                    ("two_stage", self.schedule(), forced),
                    ("full", self.schedule(), forced),
                    ("pruned", self.schedule(), forced)]]
        for precision in LOGIT_TOLERANCE:
            for copy in copies:
                outcome = self.run_pair(precision, runs, copy=copy)
                self.check_outcome(precision, runs, outcome)

    def check_outcome(self, precision, runs, outcome):
        check = reference.AnswerCheck()
        worst = max(self.compare(precision, run, got, check)
                    for run, got in zip(runs, outcome))
        self.report(f"{precision}, max relative error {worst:.1e}, "
                    f"{check.num_ties} ties in {check.num_tokens} tokens")
        self.assertEqual(check.errors, [])
        self.assertLessEqual(worst, LOGIT_TOLERANCE[precision])
        self.num_tokens[precision] += check.num_tokens
        self.num_ties[precision] += check.num_ties
        for run, got in zip(runs, outcome):
            if run["path"] != "two_stage":
                continue
            self.assertEqual(len(got.decoded), len(run["requests"]))
            if self.kv_map.maps is None:
                self.assertEqual(got.prefilled, got.decoded)

    def check_named(self, name, kind="identity", copies=(False,), **sizes):
        # Stored as bf16, so that the weights are the same in both precisions.
        shape = checkpoints.golden_shapes(self.rng)[name]
        self.make_pair(shape.changed(stored="bfloat16"), kind, **sizes)
        self.check_pair(copies)

    def test_llama_identity(self):
        self.make_pair(random_llama(self.rng))
        self.check_pair(copies=(False, True))

    def test_llama_layers(self):
        self.make_pair(random_llama(self.rng), "layers", layers=2)
        self.check_pair(copies=(False, True))

    def test_llama_projection(self):
        self.make_pair(random_llama(self.rng), "projection", layers=2)
        self.check_pair()

    def test_llama_biases_identity(self):
        self.check_named("llama_untied_biases", hidden=161)

    def test_qwen2_identity(self):
        self.check_named("qwen2")

    def test_qwen2_layers(self):
        self.check_named("qwen2", "layers", layers=2)

    def test_qwen3_identity(self):
        self.check_named("qwen3")

    def test_qwen3_projection(self):
        self.check_named("qwen3", "projection")

    def test_mistral_layers(self):
        self.check_named("mistral", "layers", layers=1)

    def test_published_widths(self):
        """Llama-3.2-3B's pruned half: hidden 1689, intermediate 4505."""
        self.make_pair(
            random_llama(self.rng, layers=1, heads=24, kv_heads=8,
                         head_dim=128, hidden=512, intermediate=700),
            hidden=1689, intermediate=4505)
        self.check_pair(num_tokens=6, num_prompts=2)


class EquivalenceTest(PairCase):
    """Paths that must be the same thing, and are told apart otherwise."""

    def setUp(self):
        super().setUp()
        self.make_pair(random_llama(self.rng))
        self.inputs = self.prompts(3)

    def run_of(self, path, schedule, fault="none"):
        return {"path": path, "max_tokens": 16, "schedule_seed": schedule,
                "fault": fault,
                "requests": golden_case.requests_of(self.inputs)}

    def answers_of(self, runs, **members):
        return [run.answers for run in self.run_pair("f32", runs, **members)]

    def assert_same(self, got, want):
        self.assertEqual(len(got), len(want))
        for g, w in zip(got, want):
            self.assertEqual(g.tokens, w.tokens)
            self.assertLessEqual(relative_error(g.logits, w.logits), 1e-6)

    def assert_not_same(self, got, want):
        with self.assertRaises(AssertionError):
            self.assert_same(got, want)

    def test_full_path_is_the_plain_model(self):
        schedule = self.schedule()
        plain = self.run_job("f32", [self.run_of("full", schedule)],
                             self.full.config.vocab_size,
                             full=self.full_path)[0].answers
        same, two_stage, *faulty = self.answers_of(
            [self.run_of("full", schedule), self.run_of("two_stage", schedule)]
            + [self.run_of("full", schedule, fault) for fault in FAULTS])
        self.assert_same(same, plain)
        self.assert_not_same(two_stage, plain)
        for fault, answers in zip(FAULTS, faulty):
            with self.subTest(fault=fault):
                self.assert_not_same(answers, plain)

    def test_two_stage_of_one_model_is_its_full_path(self):
        # One at a time: two pools mix their batches otherwise than one does.
        want, other = self.answers_of(
            [self.run_of("full", 0), self.run_of("two_stage", 0)])
        self.assert_not_same(other, want)
        # Whichever pool samples token 0 here, it is the full model.
        faults = [f for f in FAULTS if f != "first_token_by_decode"]
        for copy in [False, True]:
            same, *faulty = self.answers_of(
                [self.run_of("two_stage", 0, fault)
                 for fault in ["none"] + faults],
                copy=copy, decode=self.full_path)
            self.assert_same(same, want)
            for fault, answers in zip(faults, faulty):
                with self.subTest(fault=fault, copy=copy):
                    self.assert_not_same(answers, want)


if __name__ == "__main__":
    golden_case.main()

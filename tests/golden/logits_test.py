"""Every architecture's logits beside the reference's, in any batches."""

import torch

import checkpoints
import golden_case
import reference
from golden_case import GoldenCase, LOGIT_TOLERANCE, relative_error

# One engine, the same rows in other batches: sums in another order only.
SCHEDULE_TOLERANCE = {"f32": 1e-4, "bf16": 2e-2}


class LogitsTest(GoldenCase):

    def check_shape(self, shape, num_prompts=3, num_tokens=6):
        path = self.checkpoint(shape)
        model = reference.Model(path)
        # The last one is long: products of many rows have their own path.
        prompts = self.prompts(num_prompts - 1) + self.prompts(1, 150, 200)
        answers = [checkpoints.random_prompt(self.rng, num_tokens)
                   for _ in prompts]
        wants = [model.forward(p + a, model.new_cache())
                 for p, a in zip(prompts, answers)]
        runs = [{"path": "full", "max_tokens": num_tokens,
                 "sample_chunks": True, "schedule_seed": schedule,
                 "requests": golden_case.requests_of(prompts, answers)}
                for schedule in [0, self.schedule(), self.schedule()]]
        for precision, tolerance in LOGIT_TOLERANCE.items():
            outcome = self.run_job(precision, runs, model.config.vocab_size,
                                   full=path)
            worst, num_rows = 0.0, 0
            for run in outcome:
                for answer, want in zip(run.answers, wants):
                    num_rows += len(answer.positions)
                    worst = max(worst, relative_error(
                        answer.logits, want[answer.positions]))
            self.report(f"{precision}, max relative error {worst:.1e} over "
                        f"{num_rows} rows")
            self.assertLessEqual(worst, tolerance, precision)
            self.check_schedules(outcome, SCHEDULE_TOLERANCE[precision])
        self.check_sensitivity(model, prompts[0], outcome[0].answers[0])

    def check_schedules(self, outcome, tolerance):
        """The answer's rows are in every run; the chunks' ends are not."""
        for run in outcome[1:]:
            for first, other in zip(outcome[0].answers, run.answers):
                rows = len(first.tokens)
                self.assertLessEqual(
                    relative_error(other.logits[-rows:],
                                   first.logits[-rows:]), tolerance)
                # Against its neighbour row the same comparison fails.
                self.assertGreater(
                    relative_error(other.logits[-rows:],
                                   first.logits[-rows:].roll(1, 0)),
                    tolerance)

    def check_sensitivity(self, model, prompt, answer):
        """A reference that is wrong in one detail is far outside."""
        tolerance = LOGIT_TOLERANCE["bf16"]
        row = answer.positions.index(len(prompt) - 1)

        def last_row_error():
            want = model.forward(prompt, model.new_cache())[-1:]
            return relative_error(answer.logits[row:row + 1], want)

        self.assertLessEqual(last_row_error(), tolerance)
        frequencies = model.frequencies
        model.frequencies = frequencies * 1.1
        self.assertGreater(last_row_error(), tolerance, "RoPE frequencies")
        model.frequencies = frequencies
        for part, wrong in [("self_attn.q_norm.weight", 1.0),
                            ("self_attn.q_proj.bias", 0.0),
                            ("self_attn.o_proj.bias", 0.0),
                            ("mlp.down_proj.bias", 0.0),
                            ("input_layernorm.weight", 1.0)]:
            name = "model.layers.0." + part
            if name not in model.tensors:
                continue
            kept = model.tensors[name]
            model.tensors[name] = torch.full_like(kept, wrong)
            self.assertGreater(last_row_error(), tolerance, part)
            model.tensors[name] = kept

    def check_named(self, name, **sizes):
        self.check_shape(checkpoints.golden_shapes(self.rng)[name], **sizes)

    def test_llama_tied_llama3_rope(self):
        self.check_named("llama_tied_llama3_rope")

    def test_llama_untied_biases(self):
        self.check_named("llama_untied_biases")

    def test_qwen2(self):
        self.check_named("qwen2")

    def test_qwen3(self):
        self.check_named("qwen3")

    def test_mistral(self):
        self.check_named("mistral")

    def test_llama_3b_pruned_width(self):
        """Llama-3.2-3B's published half: hidden 1689, intermediate 4505."""
        self.check_named("llama_3b_pruned_width", num_prompts=1, num_tokens=3)


if __name__ == "__main__":
    golden_case.main()

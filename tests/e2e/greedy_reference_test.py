"""Greedy answers of the three paths through the real server, beside an
independent reference, on random odd-sized pairs that nobody has seen.

The reference is teacher-forced with what the server said; a token that differs
passes only where the reference's best two tie, as tests/golden/README.md says.
"""

import concurrent.futures
import os
import unittest

import torch

import harness
from harness import Answer, checkpoints, pb2
import reference

NUM_PROMPTS = 8
NUM_TOKENS = 16
MAX_TIE_RATE = 0.02
PATHS = {"two_stage": pb2.DECODE_PATH_TWO_STAGE,
         "full": pb2.DECODE_PATH_FULL, "pruned": pb2.DECODE_PATH_PRUNED}
# Steps of up to 64 rows: on AVX-512 BF16 larger ones round the input of
# products to bf16, and a token's distance to a tie with it.
FLAGS = ["--prefill_chunk_tokens=40", "--max_decode_batch=16",
         "--block_tokens=8"]


class GreedyReferenceTest(unittest.TestCase):

    num_tokens = num_ties = 0

    @classmethod
    def tearDownClass(cls):
        rate = cls.num_ties / max(1, cls.num_tokens)
        print(f"{cls.num_ties} ties in {cls.num_tokens} tokens", flush=True)
        assert rate <= MAX_TIE_RATE, f"{rate:.4f} are ties"

    def setUp(self):
        self.rng = checkpoints.seeded(f"{harness.SEED} {self.id()}")

    def make(self, shape, kind, **sizes):
        sizes.setdefault("hidden", checkpoints.odd(self.rng, 81, 120))
        sizes.setdefault("intermediate", checkpoints.odd(self.rng, 161, 240))
        directory = harness.work_dir(self.id())
        paths = [
            checkpoints.write_checkpoint(os.path.join(directory, half), s,
                                         self.rng.getrandbits(31))
            for half, s in [("full", shape), ("pruned",
                                              shape.changed(**sizes))]]
        self.full, self.pruned = map(reference.Model, paths)
        kv_map = checkpoints.write_kv_map(directory, kind, self.full.config,
                                          self.pruned.config, self.rng)
        self.kv_map = reference.KvMap(self.full.config, kv_map)
        flags = [f"--prefill_model={paths[0]}", f"--decode_model={paths[1]}"]
        return flags + ([] if kv_map is None else [f"--kv_map={kv_map}"])

    def ask(self, server, path, prompt):
        request = pb2.GenerateRequest(tokens=pb2.TokenIds(ids=prompt),
                                      path=PATHS[path])
        request.sampling.temperature = 0
        request.limits.max_tokens = NUM_TOKENS
        request.limits.ignore_eos = True
        answer = Answer(server.stub.Generate(request,
                                             timeout=harness.CALL_SECONDS))
        self.assertEqual(len(answer.ids), NUM_TOKENS, answer.error)
        self.assertEqual(answer.completion.usage.completion_tokens, NUM_TOKENS)
        return answer.ids

    def check(self, shape, kind="identity", weights="bf16", **sizes):
        flags = self.make(shape, kind, **sizes)
        prompts = [checkpoints.random_prompt(self.rng,
                                             self.rng.randrange(5, 130))
                   for _ in range(NUM_PROMPTS)]
        jobs = [(path, prompt) for path in PATHS for prompt in prompts]
        self.rng.shuffle(jobs)
        server = harness.Server(flags + FLAGS + [f"--weights={weights}"])
        try:
            # All at once, so that the paths mix in the batches.
            with concurrent.futures.ThreadPoolExecutor(len(jobs)) as executor:
                answers = list(executor.map(
                    lambda job: self.ask(server, *job), jobs))
        finally:
            self.assertEqual(server.stop(), 0)
        stored = torch.bfloat16 if weights == "bf16" else torch.float64
        check = reference.AnswerCheck()
        for (path, prompt), ids in zip(jobs, answers):
            logits = reference.path_logits(path, self.full, self.pruned,
                                           self.kv_map, prompt, ids, stored)
            check.add(f"{path}, prompt of {len(prompt)}", ids, logits,
                      self.full.token_mask)
        print(f"{self._testMethodName}: {check.num_ties} ties in "
              f"{check.num_tokens} tokens", flush=True)
        self.assertEqual(check.errors, [])
        type(self).num_tokens += check.num_tokens
        type(self).num_ties += check.num_ties
        # The paths are told apart: another one's answers do not pass.
        self.assert_paths_differ(jobs, answers)

    def assert_paths_differ(self, jobs, answers):
        by_path = {path: {} for path in PATHS}
        for (path, prompt), ids in zip(jobs, answers):
            by_path[path][tuple(prompt)] = ids
        self.assertNotEqual(by_path["two_stage"], by_path["full"])
        self.assertNotEqual(by_path["two_stage"], by_path["pruned"])

    def named(self, name):
        # Stored as bf16, so that the weights are the same in both precisions.
        return checkpoints.golden_shapes(self.rng)[name].changed(
            stored="bfloat16")

    def llama(self):
        return checkpoints.Shape(
            "LlamaForCausalLM", layers=4,
            hidden=checkpoints.odd(self.rng, 131, 200),
            intermediate=checkpoints.odd(self.rng, 301, 420), heads=4,
            kv_heads=2, head_dim=self.rng.choice([64, 80, 96, 128]),
            tied=self.rng.random() < 0.5, llama3_rope=True, stored="bfloat16",
            spelling=self.rng.choice([4, 5]))

    def test_llama_identity(self):
        self.check(self.llama())

    def test_llama_identity_f32(self):
        self.check(self.llama(), weights="f32")

    def test_llama_layers(self):
        self.check(self.llama(), "layers", layers=2)

    def test_llama_projection(self):
        self.check(self.llama(), "projection", layers=3)

    def test_llama_biases(self):
        self.check(self.named("llama_untied_biases"),
                   hidden=checkpoints.odd(self.rng, 121, 170))

    def test_qwen2_layers(self):
        self.check(self.named("qwen2"), "layers", layers=2)

    def test_qwen3_projection(self):
        self.check(self.named("qwen3"), "projection", weights="f32")

    def test_mistral_identity(self):
        self.check(self.named("mistral"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    harness.main()

"""What the golden tests share: checkpoints, pairs and comparisons.

The checkpoints are drawn from a seed that is printed; OVERFILL_GOLDEN_SEED
brings the same ones back.
"""

import argparse
import os
import secrets
import sys
import tempfile
import unittest

import torch

import checkpoints
import reference
import runner

# max|a - b| / max|b| of logits.
LOGIT_TOLERANCE = {"f32": 1e-3, "bf16": 2e-2}
# Of all tokens, how many may differ where the reference's best two tie.
MAX_TIE_RATE = 0.02
BLOCK_TOKENS = 8
# Of runs whose tokens are compared. On AVX-512 BF16 larger steps round the
# input of products to bf16, and a token's distance to a tie with it.
MAX_STEP_ROWS = 64

# What can be planted in a run; see faults.h.
FAULTS = ["kv_zeroed", "kv_swapped", "positions_off_by_one",
          "last_block_dropped", "first_token_by_decode", "neighbours_block"]

SEED = int(os.environ.get("OVERFILL_GOLDEN_SEED") or secrets.randbits(31))


def relative_error(got, want):
    """max|got - want| / max|want|; a number that is not one is infinite."""
    if not torch.isfinite(got).all():
        return float("inf")
    return float((got - want).abs().max() / want.abs().max())


def requests_of(prompts, answers=None):
    """Requests of a run; with `answers` they are teacher-forced."""
    if answers is None:
        return [{"prompt": p} for p in prompts]
    return [{"prompt": p, "answer": a} for p, a in zip(prompts, answers)]


class GoldenCase(unittest.TestCase):
    """Checkpoints and prompts of one test, drawn from its name and the seed."""

    runner_path = None  # set by main

    def setUp(self):
        self.rng = checkpoints.seeded(f"{SEED} {self._testMethodName}")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.num_checkpoints = 0

    def checkpoint(self, shape):
        self.num_checkpoints += 1
        return checkpoints.write_checkpoint(
            os.path.join(self.directory, str(self.num_checkpoints)), shape,
            self.rng.getrandbits(32))

    def prompts(self, count, low=20, high=64):
        """Lengths that leave the last block partial."""
        lengths = [n for n in range(low, high) if n % BLOCK_TOKENS != 0]
        return [checkpoints.random_prompt(self.rng, self.rng.choice(lengths))
                for _ in range(count)]

    def whole_block_prompt(self):
        """One that ends where a block does."""
        num_blocks = self.rng.randint(2, MAX_STEP_ROWS // BLOCK_TOKENS)
        return checkpoints.random_prompt(self.rng, num_blocks * BLOCK_TOKENS)

    def answers(self, prompts, num_tokens):
        """To force: models of random weights soon repeat themselves."""
        return [checkpoints.random_prompt(self.rng, num_tokens)
                for _ in prompts]

    def schedule(self):
        """A seed of ragged steps; 0 would be one request at a time."""
        return self.rng.getrandbits(30) | 1

    def run_job(self, precision, runs, vocab_size, **members):
        job = dict(members, weights=precision, kv=precision,
                   block_tokens=BLOCK_TOKENS, runs=runs)
        return runner.run_job(self.runner_path, job, vocab_size)

    def report(self, text):
        print(f"{self._testMethodName}: {text}", flush=True)


class PairCase(GoldenCase):
    """A pair of random checkpoints and its KV map."""

    def make_pair(self, shape, kind="identity", **decode_sizes):
        decode_sizes.setdefault("hidden", checkpoints.odd(self.rng, 81, 120))
        decode_sizes.setdefault("intermediate",
                                checkpoints.odd(self.rng, 161, 240))
        self.full_path = self.checkpoint(shape)
        self.decode_path = self.checkpoint(shape.changed(**decode_sizes))
        self.full = reference.Model(self.full_path)
        self.decode = reference.Model(self.decode_path)
        self.map_path = checkpoints.write_kv_map(
            self.directory, kind, self.full.config, self.decode.config,
            self.rng)
        self.kv_map = reference.KvMap(self.full.config, self.map_path)
        self._wanted = {}

    def run_pair(self, precision, runs, **members):
        members = {"full": self.full_path, "decode": self.decode_path,
                   **members}
        if self.map_path is not None:
            members["kv_map"] = self.map_path
        return self.run_job(precision, runs, self.full.config.vocab_size,
                            **members)

    def _want(self, path, prompt, answer, stored):
        key = (path, tuple(prompt), tuple(answer), stored)
        if key not in self._wanted:
            self._wanted[key] = reference.path_logits(
                path, self.full, self.decode, self.kv_map, prompt, answer,
                stored)
        return self._wanted[key]

    def compare(self, precision, run, got, check):
        """Adds the run's tokens to `check`; returns the worst logit error.

        The reference is teacher-forced: with the run's answers where it has
        some, else with what the engine said.
        """
        worst, path = 0.0, run["path"]
        for i, (request, answer) in enumerate(zip(run["requests"],
                                                  got.answers)):
            prompt = request["prompt"]
            said = request.get("answer", answer.tokens)
            exact = self._want(path, prompt, said, torch.float64)
            worst = max(worst, relative_error(answer.logits, exact))
            self.compare_tokens(precision, path, prompt, said, answer.tokens,
                                check)
        return worst

    def compare_tokens(self, precision, path, prompt, said, tokens, check):
        """Adds the tokens chosen after the prompt and `said`, one by one.

        The reference keeps K and V in the type of the store: what the server
        promises is the greedy answer of the model over that store.
        """
        stored = torch.bfloat16 if precision == "bf16" else torch.float64
        check.add(f"{path}, prompt of {len(prompt)}", tokens,
                  self._want(path, prompt, said, stored),
                  self.full.token_mask)


def random_llama(rng, **sizes):
    """A Llama of one of the head sizes, for tests of what is not its own."""
    return checkpoints.Shape(**{**dict(
        architecture="LlamaForCausalLM", layers=4,
        hidden=checkpoints.odd(rng, 131, 200),
        intermediate=checkpoints.odd(rng, 301, 420), heads=4, kv_heads=2,
        head_dim=rng.choice([64, 80, 96, 128]), tied=rng.random() < 0.5,
        llama3_rope=True, stored="bfloat16", spelling=rng.choice([4, 5])),
        **sizes})


def main():
    """Runs the calling module's tests; --runner=GOLDEN_RUNNER."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runner", required=True)
    options, rest = parser.parse_known_args()
    GoldenCase.runner_path = os.path.abspath(options.runner)
    torch.set_num_threads(1)  # the tests' programs run beside each other
    print(f"OVERFILL_GOLDEN_SEED={SEED}", flush=True)
    unittest.main(argv=sys.argv[:1] + rest)

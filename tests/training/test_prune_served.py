"""A pruned checkpoint in the engine: the logits are those of PyTorch."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import tempfile
import unittest

import torch

from tests.training import tiny_models
from training import checkpoint, kv_map, manifest, prune
from training.kv_map import KvMap, Projection
from training.tokenizer import train_tokenizer

SEED = random.randrange(1 << 30)
ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNNER = pathlib.Path(os.environ.get(
    "OVERFILL_GOLDEN_RUNNER",
    ROOT / "build/release/tests/golden/golden_runner"))
NUM_TOKENS = 6
VOCAB_SIZE = 320


def pair_logits(full, decode, view, prompt, answer):
    """[prompt + answer, vocabulary]: each row follows the token before it.
    `view` makes what the decode model reads of the full one's KV."""
    def run(model, ids, first, past=None):
        hidden, kv = model(torch.tensor([ids]),
                           torch.arange(first, first + len(ids))[None], past)
        return model.logits(hidden)[0], kv

    with torch.no_grad():
        of_prompt, kv = run(full, prompt, 0)
        of_answer, _ = run(decode, answer, len(prompt), view(kv))
    return torch.cat([of_prompt, of_answer]).double()


@unittest.skipUnless(RUNNER.exists(), f"{RUNNER} is not built")
class ServedTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", flush=True)
        letters = [f"{a}{b} {c}" for a in "abcdefgh" for b in "abcdefgh"
                   for c in "abcdefgh"]
        cls.tokenizer = train_tokenizer(letters, VOCAB_SIZE)

    def engine(self, folder, members, path, prompts, answers):
        """(positions, logits) of each prompt, with its answer forced."""
        job = {"weights": "f32", "kv": "f32", "block_tokens": 8,
               "output": str(folder / "engine"), **members, "runs": [{
                   "path": path, "max_tokens": NUM_TOKENS, "schedule_seed": 7,
                   "requests": [{"prompt": p, "answer": a}
                                for p, a in zip(prompts, answers)]}]}
        (folder / "job.json").write_text(json.dumps(job))
        done = subprocess.run([RUNNER, folder / "job.json"], text=True,
                              capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        stated = json.loads((folder / "engine.json").read_text())
        rows = torch.frombuffer(
            bytearray((folder / "engine.f32").read_bytes()),
            dtype=torch.float32).view(-1, VOCAB_SIZE).double()
        for request in stated["runs"][0]["requests"]:
            first, positions = request["first_row"], request["positions"]
            yield positions, rows[first:first + len(positions)]

    def write_projection(self, out, layers, full, decode):
        """Maps near the identity, with biases, as the pair's."""
        maps = Projection(layers, full.config, decode.config, has_bias=True)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in maps.parameters():
                parameter += 0.1 * torch.randn(
                    parameter.shape, generator=generator)
        kv_map.write(out, maps)
        checkpoint.write_json(out / "overfill.json", {
            **manifest.read(out), "kv_map": "projection"})
        return maps

    def check(self, config, projects=False, **options):
        config = dataclasses.replace(config, vocab_size=VOCAB_SIZE)
        prompts = tiny_models.rows_of_ids(SEED, (5, 24, 37), VOCAB_SIZE)
        answers = tiny_models.rows_of_ids(
            SEED + 1, [NUM_TOKENS] * 3, VOCAB_SIZE)
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(
                stack.enter_context(tempfile.TemporaryDirectory()))
            tiny_models.save(folder / "full", tiny_models.make(config, SEED))
            self.tokenizer.save(folder / "full", 256)
            prune.prune_checkpoint(
                folder / "full", folder / "out", prompts,
                prune.Options(hidden=0.45, intermediate=0.45, **options))
            full, _ = checkpoint.load_checkpoint(folder / "full")
            decode, _ = checkpoint.load_checkpoint(folder / "out")
            layers = checkpoint.read_json(
                folder / "out/overfill.json")["layer_map"]
            view = KvMap(layers)
            if projects:
                view = self.write_projection(
                    folder / "out", layers, full, decode)
            members = {"full": str(folder / "full"),
                       "decode": str(folder / "out")}
            if (folder / "out/kv_map.json").exists():
                members["kv_map"] = str(folder / "out/kv_map.json")
            for path, reader, of_reader in (
                    ("two_stage", full, view),
                    ("pruned", decode, lambda kv: kv)):
                got = self.engine(folder, members, path, prompts, answers)
                for prompt, answer, (positions, logits) in zip(
                        prompts, answers, got):
                    wanted = pair_logits(
                        reader, decode, of_reader, prompt, answer)[positions]
                    self.assertGreaterEqual(len(positions), NUM_TOKENS)
                    error = (logits - wanted).abs().max()
                    self.assertLess(float(error / wanted.abs().max()), 1e-4)
                    # And the check can fail: a neighbour's row is seen.
                    off = logits.roll(1, 0) - wanted
                    self.assertGreater(float(off.abs().max()), 0.01)

    def test_widths(self):
        for name, config in tiny_models.ALL.items():
            with self.subTest(name):
                self.check(config)

    def test_depth(self):
        for strategy in ("firstlast", "importance"):
            self.check(tiny_models.QWEN3, depth=0.3, depth_strategy=strategy)

    def test_a_projection_with_biases(self):
        self.check(tiny_models.LLAMA3, projects=True, depth=0.3)


if __name__ == "__main__":
    unittest.main()

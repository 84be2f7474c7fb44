"""The demo's recipe, whole and tiny: made, made again, interrupted."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

from training import checkpoint, manifest
from training.demo import card, decoders, judged, recipe
from training.judge import systems
from training.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ["--processes", "1", "--hidden-size", "96", "--intermediate-size", "64",
        "--num-layers", "2", "--num-heads", "3", "--copying-steps", "1",
        "--facts-steps", "1", "--full-steps", "4", "--decoder-steps", "2"]


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-B", "-m", module, *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True, check=False)


def make(pair, work):
    """The recipe, in this process."""
    arguments = ["recipe", "--out", str(pair), "--work", str(work), *TINY]
    with unittest.mock.patch.object(sys, "argv", arguments):
        if recipe.main() != 0:
            raise AssertionError("the recipe was stopped")


class RecipeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        cls.pair, cls.work = cls.folder / "pair", cls.folder / "work"
        patch = unittest.mock.patch.multiple(
            decoders, DEV_PARTS=1)  # all that takes long
        patch.start()
        cls.addClassCleanup(patch.stop)
        make(cls.pair, cls.work)

    def test_the_pair_is_whole(self):
        full, _ = checkpoint.load_checkpoint(self.pair / "full")
        decode, _ = checkpoint.load_checkpoint(self.pair / "decode")
        self.assertEqual(full.config.hidden_size, 96)
        self.assertEqual(decode.config.hidden_size % 2, 1)
        self.assertEqual(decode.config.intermediate_size % 2, 1)
        stated = manifest.read(self.pair / "decode")
        for half in ("full", "decode"):
            for name, digest in stated[half]["files"].items():
                self.assertEqual(
                    checkpoint.sha256_of(self.pair / half / name), digest)
        training = json.loads((self.pair / "training.json").read_text())
        self.assertEqual(training["stages"]["full"]["steps"], 4)
        self.assertEqual(training["stages"]["decode"]["steps"], 2)

    def test_the_decoder_was_trained_from_the_cut(self):
        cut, _ = checkpoint.load_checkpoint(self.work / "cut")
        decode, _ = checkpoint.load_checkpoint(self.pair / "decode")
        moved = [float((left - right).abs().max()) for left, right in zip(
            cut.state_dict().values(), decode.state_dict().values())]
        self.assertGreater(max(moved), 0)
        self.assertLess(max(moved), 0.1)

    def test_a_second_run_has_nothing_to_do(self):
        before = (self.work / "full.csv").read_text()
        make(self.folder / "again", self.work)
        self.assertEqual((self.work / "full.csv").read_text(), before)
        for half in ("full", "decode"):
            self.assertEqual(
                checkpoint.sha256_of(self.pair / half / "model.safetensors"),
                checkpoint.sha256_of(
                    self.folder / "again" / half / "model.safetensors"))

    def test_another_recipe_does_not_go_on_with_this_one(self):
        done = run("training.demo.recipe", "--out", self.folder / "other",
                   "--work", self.work, *TINY, "--full-lr", "0.5")
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn("full_lr", done.stderr)
        self.assertFalse((self.folder / "other").exists())

    def test_a_scratch_decoder_has_the_widths_and_no_manifest(self):
        out = self.folder / "scratch"
        decoders.train_decoder(
            decoders.Plan("scratch", 1, 1e-3), self.work / "full",
            self.work / "cut", out, self.folder / "scratch.run", print)
        cut, _ = checkpoint.load_checkpoint(self.work / "cut")
        scratch, _ = checkpoint.load_checkpoint(out)
        self.assertEqual(scratch.config, cut.config)
        self.assertFalse((out / manifest.FILE_NAME).exists())
        left = cut.model.layers[0].mlp.up_proj.weight
        right = scratch.model.layers[0].mlp.up_proj.weight
        self.assertLess(abs(float((left * right).mean())),
                        0.2 * float(right.pow(2).mean()))

    def test_all_kinds_see_the_same_answers(self):
        tokenizer = Tokenizer.load(self.pair / "full")
        left, right = decoders.Mix(tokenizer, 1), decoders.Mix(tokenizer, 1)
        for step in (0, 1, 6):
            self.assertEqual(left(step, 0, 0).ids.tolist(),
                             right(step, 0, 0).ids.tolist())

    def test_the_card_is_made_of_what_was_measured(self):
        quality = {"results": [
            {"metric": "full.exact", "value": 0.5},
            *({"metric": f"full.lookup.exact{end}", "value": value}
              for end, value in (("", 0.75), ("_low", 0.7), ("_high", 0.8)))]}
        text = card.card(self.pair, quality)
        self.assertIn("75.0 % [70.0, 80.0]", text)
        self.assertIn("| hidden size | 96 |", text)

    def test_judged_refuses_what_the_recipe_did_not_make(self):
        for pair in (self.folder / "nothing", ROOT / "models" / "demo"):
            done = run("training.demo.judged", "--pair", pair,
                       "--work", self.folder / "elsewhere")
            self.assertEqual(done.returncode, 2)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(str(pair), done.stderr)
        self.assertFalse((ROOT / "models" / "demo" / "judged").exists())

    def test_judged_decoders_are_where_the_judge_looks(self):
        tried = []
        train = decoders.train_decoder

        def train_noted(plan, *arguments):
            tried.append(plan)
            return train(plan, *arguments)

        with unittest.mock.patch.multiple(
                judged, LEARNING_RATES=(1e-3, 3e-3), RATIOS=(0.5,)), \
                unittest.mock.patch.object(
                    decoders, "train_decoder", train_noted):
            for kind in decoders.KINDS:
                # As on another machine, later: what was done is not again.
                work = self.folder / f"work-{kind}"
                judged.Runs(self.pair, work).train_kind(kind)
            count = len(tried)
            judged.Runs(self.pair, self.folder / "late").train_kind("pruned")
        self.assertEqual(count, 3 * 3 + 2)
        self.assertEqual(len(tried), count)
        for system in systems.of_pair(self.pair):
            checkpoint.load_checkpoint(system.decode)
        self.assertEqual(len(systems.ratios(self.pair)), 2)
        record = json.loads(
            (self.pair / "judged" / "training.json").read_text())
        self.assertEqual(set(record["chosen"]), set(decoders.KINDS))
        for kind, chosen in record["chosen"].items():
            self.assertIn("gain_of_twice_the_steps", chosen)
            runs = [r for r in record["runs"].values()
                    if r["kind"] == kind and r["num_steps"] == 2
                    and r["removed"] == 0.7]
            self.assertEqual(chosen["dev_exact"],
                             max(r["dev_exact"] for r in runs))
        for run_of in record["runs"].values():
            self.assertTrue(run_of["curve"])


if __name__ == "__main__":
    unittest.main()

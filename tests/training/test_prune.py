"""Pruning against numpy, on models of every architecture."""

import copy
import os
import pathlib
import random
import tempfile
import unittest

import numpy as np
import torch

from tests.training import dense_model, tiny_models
from training import prune
from training.errors import UserError
from training.prune_choice import (
    Importance, choose, choose_layers, count_kept, parse_width, top)
from training.prune_importance import (
    ModelLayers, StoredLayers, magnitude, measure)
from training.safetensors_file import TensorReader

SEED = random.randrange(1 << 30)
LENGTHS = (5, 9, 14, 14, 3, 14)


def lead(scores, count):
    """Indices of the highest scores, ascending."""
    order = np.argsort(-scores, kind="stable")
    return sorted(order[:count].tolist())


def assert_leads(test, kept, scores, count):
    """As lead() says, unless float32 could not tell two channels apart."""
    test.assertEqual(len(kept), count)
    test.assertEqual(kept, sorted(set(kept)))
    others = np.delete(scores, kept)
    if min(scores[kept]) < max(others) * (1 + 1e-5):
        test.assertGreater(min(scores[kept]), max(others) * (1 - 1e-5))
    else:
        test.assertEqual(kept, lead(scores, count))


def samples_of(rows):
    return [(torch.tensor([row]), torch.arange(len(row))[None])
            for row in rows]


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", flush=True)
        cls.rows = tiny_models.rows_of_ids(SEED, LENGTHS)

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)


class ChoiceTest(unittest.TestCase):
    def test_published_widths(self):
        for size, ratio, kept in ((3072, 0.45, 1689), (8192, 0.45, 4505),
                                  (4096, 0.43, 2334), (14336, 0.43, 8171)):
            self.assertEqual(count_kept(ratio, size, "x"), kept)

    def test_counts_are_those_of_the_expression(self):
        # What the expression gives, worked out by hand in binary: 1 - 0.45 is
        # just above 0.55, 1 - 0.8 just below 0.2, 1 - 0.9 just below 0.1.
        for size, ratio, kept in ((20, 0.45, 11), (10, 0.8, 1), (5, 0.0, 5),
                                  (20, 0.9, 1), (7, 0.999 / 7, 6)):
            self.assertEqual(count_kept(ratio, size, "x"), kept)
        for size, ratio in ((10, 0.9), (5, 0.8)):  # 0.99...: nothing is left
            with self.assertRaisesRegex(UserError, f"of {size}"):
                count_kept(ratio, size, "x")

    def test_widths_in_channels(self):
        self.assertEqual(count_kept(7, 20, "x"), 7)
        self.assertEqual(count_kept(20, 20, "x"), 20)
        with self.assertRaisesRegex(UserError, "--hidden: 21 would keep 21"):
            count_kept(21, 20, "--hidden")

    def test_flags(self):
        self.assertEqual(parse_width("0.45", "x"), 0.45)
        self.assertEqual(parse_width("0", "x"), 0.0)
        self.assertIsInstance(parse_width("1689", "x"), int)
        self.assertEqual(parse_width("1", "x"), 1)
        for text in ("1.0", "1.5", "-0.1", "nan", "inf", "", "x", "-3",
                     "1689.0", "1_000", "99999999999"):
            with self.assertRaisesRegex(UserError, "ratio in"):
                parse_width(text, "--hidden")

    def test_of_equal_scores_the_first_stay(self):
        self.assertEqual(top(torch.tensor([1.0, 2, 1, 2, 1]), 3), [0, 1, 3])
        self.assertEqual(top(torch.ones(9), 4), [0, 1, 2, 3])

    def test_scores_that_are_no_numbers(self):
        with self.assertRaisesRegex(UserError, "not finite"):
            choose(Importance(torch.tensor([1.0, float("nan")]), []), 1, 1)

    def test_layers(self):
        influence = [0.5, 0.1, 0.3, 0.2, 0.4]
        for strategy, count, kept in (
                ("first", 3, [0, 1, 2]), ("last", 3, [2, 3, 4]),
                ("firstlast", 3, [0, 3, 4]), ("firstlast", 5, [0, 1, 2, 3, 4]),
                ("importance", 3, [0, 2, 4]), ("importance", 4, [0, 2, 3, 4])):
            self.assertEqual(choose_layers(strategy, count, influence), kept)
        with self.assertRaisesRegex(UserError, "unknown"):
            choose_layers("middle", 3, influence)

    def test_widths_are_odd(self):
        for width in range(10, 400):
            cut = prune.odd_width(width, 0.55)
            self.assertEqual(cut % 2, 1)
            self.assertLessEqual(abs(cut - 0.55 * width), 1.0)


class ImportanceTest(Base):
    def test_scores_and_indices_are_numpys(self):
        for name, config in tiny_models.ALL.items():
            model = tiny_models.rounded(tiny_models.make(config, SEED))
            hidden, inner, influence = dense_model.importance(
                dense_model.numpy_state(model), config, self.rows)
            full = self.folder / name
            tiny_models.save(full, model)
            source = StoredLayers(TensorReader(full), config)
            for source in (source, ModelLayers(model)):
                got = measure(source, samples_of(self.rows))
                np.testing.assert_allclose(
                    got.importance.hidden.numpy(), hidden, rtol=1e-4)
                np.testing.assert_allclose(
                    torch.stack(got.importance.intermediate).numpy(), inner,
                    rtol=1e-4)
                np.testing.assert_allclose(got.influence, influence, rtol=1e-3)
            kept = prune.prune_checkpoint(
                full, self.folder / f"{name}.out", self.rows,
                prune.Options(hidden=0.45, intermediate=0.45))
            assert_leads(self, kept.hidden, hidden, 11)
            self.assertEqual(len(kept.intermediate), 3)
            for chosen, scores in zip(kept.intermediate, inner):
                assert_leads(self, chosen, scores, 15)

    def test_positions_count(self):
        model = tiny_models.make(tiny_models.LLAMA3, SEED)
        places = [np.arange(90, 90 + len(row)) for row in self.rows]
        samples = [(torch.tensor([row]), torch.from_numpy(at)[None])
                   for row, at in zip(self.rows, places)]
        hidden, _, _ = dense_model.importance(
            dense_model.numpy_state(model), model.config,
            list(zip(self.rows, places)))
        got = prune.measure_importance(model, samples)
        np.testing.assert_allclose(got.hidden.numpy(), hidden, rtol=1e-4)

    def test_signed_means(self):
        model = tiny_models.make(tiny_models.LLAMA, SEED)
        state = dense_model.numpy_state(model)
        runs = [dense_model.run(state, model.config, row)[1]
                for row in self.rows]
        per_sample = np.array([
            sum(np.abs(seen[which][index].mean(0))
                for which in ("first", "second") for index in range(3))
            for seen in runs])
        got = measure(ModelLayers(model), samples_of(self.rows), signed=True)
        np.testing.assert_allclose(
            got.importance.hidden.numpy(),
            np.sqrt((per_sample ** 2).sum(0)), rtol=1e-4)
        inner = np.array([seen["inner"][1].mean(0) for seen in runs])
        np.testing.assert_allclose(
            got.importance.intermediate[1].numpy(),
            np.sqrt((inner ** 2).sum(0)), rtol=2e-3, atol=1e-6)

    def test_a_spilled_run_is_the_same(self):
        model = tiny_models.make(tiny_models.QWEN3, SEED)
        for dtype in (torch.float32, torch.bfloat16):
            source = ModelLayers(copy.deepcopy(model).to(dtype))
            one = measure(source, samples_of(self.rows))
            other = measure(source, samples_of(self.rows), spill=self.folder)
            self.assertTrue(torch.equal(
                one.importance.hidden, other.importance.hidden))
            self.assertEqual(one.influence, other.influence)
            self.assertEqual(os.listdir(self.folder), [])

    def test_bf16_runs_agree_roughly(self):
        model = tiny_models.make(tiny_models.LLAMA3, SEED)
        wide = measure(ModelLayers(model), samples_of(self.rows))
        narrow = measure(ModelLayers(model.to(torch.bfloat16)),
                         samples_of(self.rows))
        np.testing.assert_allclose(
            narrow.importance.hidden, wide.importance.hidden, rtol=0.05)

    def test_magnitude_is_the_norm_of_weights(self):
        model = tiny_models.make(tiny_models.QWEN3, SEED)
        state = dense_model.numpy_state(model)
        squares = (state["model.embed_tokens.weight"] ** 2).sum(0)
        inner = []
        for index in range(3):
            w = lambda name: state[f"model.layers.{index}.{name}.weight"] ** 2
            for name in ("self_attn.q_proj", "self_attn.k_proj",
                         "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
                squares = squares + w(name).sum(0)
            squares = squares + w("self_attn.o_proj").sum(1)
            squares = squares + w("mlp.down_proj").sum(1)
            inner.append(np.sqrt(
                w("mlp.gate_proj").sum(1) + w("mlp.up_proj").sum(1)
                + w("mlp.down_proj").sum(0)))
        got = magnitude(ModelLayers(model))
        np.testing.assert_allclose(got.hidden, np.sqrt(squares), rtol=1e-5)
        np.testing.assert_allclose(
            torch.stack(got.intermediate), np.array(inner), rtol=1e-5)

    def test_baselines_need_no_text_and_differ(self):
        model = tiny_models.make(tiny_models.LLAMA, SEED)
        tiny_models.save(self.folder / "full", model)
        kept = {}
        for name, options in (
                ("magnitude", {}), ("random", {"seed": 3}),
                ("again", {"seed": 3}), ("other", {"seed": 4})):
            importance = "magnitude" if name == "magnitude" else "random"
            kept[name] = prune.prune_checkpoint(
                self.folder / "full", self.folder / name, [], prune.Options(
                    hidden=11, intermediate=15, importance=importance,
                    **options))
            self.assertEqual(len(kept[name].hidden), 11)
            self.assertEqual(sorted(set(kept[name].hidden)),
                             kept[name].hidden)
            for inner in kept[name].intermediate:
                self.assertEqual(sorted(set(inner)), inner)
        self.assertEqual(kept["random"], kept["again"])
        self.assertNotEqual(kept["random"], kept["other"])
        self.assertNotEqual(kept["random"], kept["magnitude"])
        scores = magnitude(ModelLayers(tiny_models.rounded(model)))
        assert_leads(self, kept["magnitude"].hidden, scores.hidden.numpy(), 11)


if __name__ == "__main__":
    unittest.main()

"""Batches of the demo: a function of the step, with the answers marked."""

import unittest

import numpy as np
import torch

from training.demo import batches, recipe, words
from training.demo.copying import seed_copying
from training.demo.induction import induction_batch
from training.errors import UserError
from training.model import Llama, ModelConfig, init_weights
from training.tokenizer import train_tokenizer


class ScenesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = train_tokenizer(recipe.corpus(1, 60), 400)
        cls.scenes = batches.Scenes(cls.tokenizer, "3")

    def test_spans_are_the_answers(self):
        for number in range(8):
            batch = self.scenes(number)
            self.assertGreater(len(batch.spans), 3)
            for span in batch.spans:
                row = batch.ids[span.row].tolist()
                end = span.start + span.length
                self.assertEqual(row[end - 1], self.tokenizer.eos_id)
                before = self.tokenizer.decode(row[:span.start])
                self.assertTrue(before.endswith("\nAnswer:"), before)
                self.assertTrue(self.tokenizer.decode(
                    row[span.start:end]).startswith(" "))

    def test_a_step_is_a_function_of_its_number(self):
        again = batches.Scenes(self.tokenizer, "3")
        for step in (9, 1, 8):
            left, right = self.scenes(step), again(step)
            self.assertTrue(torch.equal(left.ids, right.ids))
            self.assertTrue(torch.equal(left.positions, right.positions))
            self.assertEqual(left.spans, right.spans)
        self.assertNotEqual(self.scenes(0).ids.tolist(),
                            self.scenes(1).ids.tolist())

    def test_parts_are_of_like_size_and_of_all_lengths(self):
        parts = [self.scenes(number)
                 for number in range(batches.PARTS_PER_DRAW)]
        sizes = [part.ids.numel() for part in parts]
        self.assertLess(max(sizes), 2 * batches.TOKENS_PER_PART)
        self.assertGreater(min(sizes), batches.TOKENS_PER_PART / 3)
        widths = [part.ids.shape[1] for part in parts]
        self.assertGreater(max(widths), 3 * min(widths))
        # Rows of a part are padded little.
        padding = sum(int((part.ids == self.tokenizer.eos_id).sum())
                      - len(part.spans) for part in parts)
        self.assertLess(padding, 0.1 * sum(sizes))

    def test_processes_share_the_parts(self):
        self.assertEqual([batches.parts_per_process(n) for n in (1, 2, 4)],
                         [4, 2, 1])
        with self.assertRaisesRegex(UserError, "3 processes"):
            batches.parts_per_process(3)

    def test_passages_grow(self):
        sizes = batches.Sizes(2, 8, 10)
        self.assertEqual([sizes.at(step) for step in (0, 9, 10, 59, 60, 999)],
                         [2, 2, 3, 7, 8, 8])

    def test_the_training_split_is_what_is_trained_on(self):
        text = " ".join(self.tokenizer.decode(row.tolist())
                        for number in range(8)
                        for row in self.scenes(number).ids)
        used = {word for word in words.NOUNS + words.PEOPLE if word in
                set(text.replace(",", " ").replace(".", " ").split())}
        self.assertGreater(len(used), 10)
        self.assertFalse([word for word in used if words.is_held_out(word)])


class RandomTokensTest(unittest.TestCase):
    def test_facts_are_the_values_told_again(self):
        batch = batches.fact_batch((3, 1), 99, num_subjects=3, longest_value=6)
        self.assertGreater(len(batch.spans), 30)
        for span in batch.spans:
            row = batch.ids[span.row].tolist()
            value = row[span.start:span.start + span.length]
            told = [at for at in range(span.start - 1)
                    if row[at:at + span.length] == value]
            self.assertTrue(told, (row, value))

    def test_copying_targets_are_what_follows(self):
        batch = batches.copying_batch((1, 2), 99)
        self.assertTrue(all(span.length == 1 for span in batch.spans))
        ids, targets = induction_batch(np.random.default_rng(1), 8, 40, 99, 3)
        rows, columns = np.nonzero(targets != batches.IGNORED)
        self.assertGreater(len(rows), 50)
        self.assertTrue(
            (targets[rows, columns] == ids[rows, columns + 1]).all())
        self.assertGreaterEqual(ids.min(), 3)

    def test_the_seeded_circuit_copies_and_a_plain_start_does_not(self):
        config = ModelConfig(600, 128, 96, 2, 4, 4, 32, rope_theta=500000.0)
        ids, targets = induction_batch(
            np.random.default_rng(5), 16, 48, 600, 0)
        wanted = torch.from_numpy(targets != batches.IGNORED)
        right = {}
        for seeded in (False, True):
            model = Llama(config)
            init_weights(model, 6)
            if seeded:
                seed_copying(model)
            with torch.no_grad():
                hidden, _ = model(torch.from_numpy(ids),
                                  torch.arange(48).expand(16, 48))
                chosen = model.logits(hidden[wanted]).argmax(-1)
            right[seeded] = float(
                (chosen == torch.from_numpy(targets)[wanted]).float().mean())
        self.assertLess(right[False], 0.05)
        self.assertGreater(right[True], 0.3)


if __name__ == "__main__":
    unittest.main()

import random
import unittest

import numpy as np
import torch

from training import build_demo, data, distil, prune, reference_eval, train
from training.copying import seed_copying
from training.induction import induction_batch
from training.model import Llama, ModelConfig, init_weights
from training.tokenizer import train_tokenizer


def tiny(vocab_size, seed, width=24):
    model = Llama(ModelConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8))
    init_weights(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(10.0)
    return model.eval()


class DistilTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = train_tokenizer(build_demo.corpus(1, 40), 400)
        mix = data.Mix(("people", "records"), 3, num_questions=3,
                       tokens_per_batch=1200)
        cls.batch = data.scene_batches(
            cls.tokenizer, mix, random.Random(4), 2)[0]
        cls.full = tiny(400, 1)

    def test_spans_are_the_answers(self):
        for span in self.batch.spans:
            row = self.batch.ids[span.row].tolist()
            end = span.start + span.length
            self.assertEqual(row[end - 1], self.tokenizer.eos_id)
            before = self.tokenizer.decode(row[:span.start])
            self.assertTrue(before.endswith("\nAnswer:"), before)
            self.assertTrue(
                self.tokenizer.decode(row[span.start:end]).startswith(" "))

    def test_only_answer_tokens_are_learned(self):
        targets = self.batch.targets()
        expected = {(span.row, at - 1): int(self.batch.ids[span.row, at])
                    for span in self.batch.spans
                    for at in range(span.start, span.start + span.length)}
        got = {(int(row), int(at)): int(targets[row, at])
               for row, at in (targets != data.IGNORED).nonzero()}
        self.assertEqual(got, expected)

    def test_decode_starts_at_token_0_and_never_predicts_it(self):
        rows = distil.decode_rows(self.batch)
        spans = [span for span in self.batch.spans if span.length > 1]
        for index, span in enumerate(spans):
            answer = self.batch.ids[span.row,
                                    span.start:span.start + span.length]
            count = span.length - 1
            self.assertEqual(rows.ids[index, :count].tolist(),
                             answer[:-1].tolist())
            kept = rows.targets[index][rows.targets[index] != data.IGNORED]
            self.assertEqual(kept.tolist(), answer[1:].tolist())
            first = self.batch.positions[span.row, 0] + span.start
            self.assertEqual(
                rows.positions[index, :count].tolist(),
                list(range(int(first), int(first) + count)))

    def test_two_stage_with_one_model_is_a_plain_model(self):
        rows = distil.decode_rows(self.batch)
        wanted = rows.targets != data.IGNORED
        with torch.no_grad():
            hidden, kv = self.full(self.batch.ids, self.batch.positions)
            two_stage = distil.run_pruned(self.full, rows, kv)[wanted]
            source = rows.source_rows[:, None].expand_as(rows.ids)[wanted]
            plain = hidden[source, rows.teacher_at[wanted]]
            torch.testing.assert_close(two_stage, plain, rtol=1e-4, atol=1e-4)
            # And the check can fail: one position off is seen.
            moved = rows._replace(positions=rows.positions + 1)
            off = distil.run_pruned(self.full, moved, kv)[wanted]
        self.assertGreater(float((off - plain).abs().max()), 1e-2)

    def test_a_later_answer_is_out_of_sight(self):
        rows = distil.decode_rows(self.batch)
        with torch.no_grad():
            _, kv = self.full(self.batch.ids, self.batch.positions)
            before = distil.run_pruned(self.full, rows, kv)
            first = int((rows.source_rows == 0).nonzero()[0])
            sight = int(rows.prompt_lens[first])
            for k, v in kv:
                k[0, :, sight:] = 7.0
                v[0, :, sight:] = 7.0
            after = distil.run_pruned(self.full, rows, kv)
        self.assertTrue(torch.equal(before[first], after[first]))
        last = int((rows.source_rows == 0).nonzero()[-1])
        self.assertNotEqual(first, last)
        self.assertFalse(torch.equal(before[last], after[last]))

    def test_distillation_moves_the_pruned_model_alone(self):
        importance = prune.measure_importance(
            self.full, [(self.batch.ids[:1], self.batch.positions[:1])])
        pruned = prune.cut(self.full, prune.choose(importance, 13, 17))
        kept = {name: tensor.clone()
                for name, tensor in self.full.state_dict().items()}
        state = train.new_state(pruned)
        losses = []
        for _ in range(6):
            loss, _ = distil.distillation_loss(
                self.full, pruned, self.batch, 1.0)
            train.apply_gradients(state, loss, 3e-3)
            losses.append(float(loss))
        self.assertLess(losses[-1], losses[0])
        for name, tensor in self.full.state_dict().items():
            self.assertTrue(torch.equal(tensor, kept[name]), name)

    def test_greedy_equals_the_model_run_from_the_start_each_time(self):
        pruned = tiny(400, 2, width=15)
        prompts = [[5, 9, 300, 17], [8] * 9, [33, 44, 2]]
        got = reference_eval.greedy(self.full, self.full, prompts, 399, 6)
        for prompt, answer in zip(prompts, got):
            ids = list(prompt)
            for token in answer:
                with torch.no_grad(), torch.autocast(
                        "cpu", dtype=torch.bfloat16):
                    hidden, _ = self.full(
                        torch.tensor([ids]), torch.arange(len(ids))[None])
                    logits = self.full.logits(hidden[:, -1])[0].float()
                # Sums in another order may turn a near tie.
                self.assertLess(float(logits.max() - logits[token]),
                                float(logits.abs().max()) * 2 ** -6)
                ids.append(token)
        mixed = reference_eval.greedy(self.full, pruned, prompts, 399, 6)
        self.assertEqual([answer[0] for answer in mixed],
                         [answer[0] for answer in got])


class CopyingTest(unittest.TestCase):
    def test_the_seeded_circuit_copies_and_a_plain_start_does_not(self):
        config = build_demo.full_config(600)
        ids, targets = induction_batch(
            np.random.default_rng(5), 16, 48, 600, 0)
        right = {}
        for seeded in (False, True):
            model = Llama(config)
            init_weights(model, 6)
            if seeded:
                seed_copying(model)
            with torch.no_grad():
                _, marks = train.target_loss(
                    model, torch.from_numpy(ids),
                    torch.arange(48).expand(16, 48),
                    torch.from_numpy(targets))
            right[seeded] = float(marks.float().mean())
        self.assertLess(right[False], 0.05)
        self.assertGreater(right[True], 0.3)

    def test_targets_are_what_follows(self):
        ids, targets = induction_batch(np.random.default_rng(1), 8, 40, 99, 3)
        rows, columns = np.nonzero(targets != data.IGNORED)
        self.assertGreater(len(rows), 50)
        self.assertTrue((targets[rows, columns] == ids[rows, columns + 1]).all())
        self.assertGreaterEqual(ids.min(), 3)


class FactBatchTest(unittest.TestCase):
    def test_spans_are_the_values_told_again(self):
        batch = data.fact_batch(
            np.random.default_rng(3), 99, num_subjects=3, num_tokens=64,
            longest_value=6, max_positions=256, tokens_per_batch=1024)
        self.assertEqual((16, 64), tuple(batch.ids.shape))
        self.assertGreater(len(batch.spans), 30)
        for span in batch.spans:
            row = batch.ids[span.row].tolist()
            value = row[span.start:span.start + span.length]
            told = [at for at in range(span.start - 1)
                    if row[at:at + span.length] == value]
            self.assertTrue(told, (row, value))
        # decode_rows takes them: nothing but what follows is predicted.
        rows = distil.decode_rows(batch)
        wanted = rows.targets != data.IGNORED
        source = rows.source_rows[:, None].expand_as(rows.ids)[wanted]
        following = batch.ids[source, rows.teacher_at[wanted] + 1]
        self.assertTrue(bool((following == rows.targets[wanted]).all()))


if __name__ == "__main__":
    unittest.main()

"""A training step's mathematics, against a dense construction by hand."""

import math
import unittest

import torch

from training import two_stage
from training.model import Llama, ModelConfig, init_weights
from training.two_stage import (
    IGNORED, Answer, Batch, LossWeights, SingleStage, Student, TwoStage)

VOCAB = 50


def tiny(seed, width=20, inner=28, layers=2, heads=4, kv_heads=2, dim=8):
    model = Llama(ModelConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=dim))
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "o_proj" in name or "down_proj" in name:
                parameter.mul_(10.0)
    return model.eval()


def make_batch(rows, width=None):
    """rows: (ids, [(start, length), ...])."""
    width = width or max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), VOCAB - 1)
    answers = []
    for index, (row, spans) in enumerate(rows):
        ids[index, :len(row)] = torch.tensor(row)
        answers += [Answer(index, *span) for span in spans]
    return Batch(ids, torch.arange(width).repeat(len(rows), 1), answers)


def random_row(generator, num_tokens, spans):
    ids = torch.randint(VOCAB, (num_tokens,), generator=generator).tolist()
    return ids, spans


# ---- The same model by hand, in float64, one sequence, one head at a time.

def norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x, position):
    """x [head_dim] at one position."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for pair in range(half):
        angle = position * 10000.0 ** (-pair / half)
        a, b = x[pair], x[pair + half]
        out[pair] = a * math.cos(angle) - b * math.sin(angle)
        out[pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def by_hand(weights, config, ids, first_position, prompt_kv):
    """Logits [len(ids), vocab] and the new K, V per layer and token.

    prompt_kv[layer] = (list of K, list of V), each [kv_heads, dim]: seen by
    every token."""
    x = weights["model.embed_tokens.weight"][ids]
    made = []
    group = config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        def w(name):
            return weights[f"model.layers.{layer}.{name}.weight"]

        keys, values = [list(part) for part in prompt_kv[layer]]
        normed = norm(x, w("input_layernorm"))
        rows = []
        for index in range(len(ids)):
            position = first_position + index
            q = (w("self_attn.q_proj") @ normed[index]).view(
                -1, config.head_dim)
            k = (w("self_attn.k_proj") @ normed[index]).view(
                -1, config.head_dim)
            v = (w("self_attn.v_proj") @ normed[index]).view(
                -1, config.head_dim)
            keys.append(torch.stack([rotate(head, position) for head in k]))
            values.append(v)
            heads = []
            for head in range(config.num_attention_heads):
                query = rotate(q[head], position)
                scores = torch.stack([key[head // group] @ query
                                      for key in keys])
                share = torch.softmax(scores / math.sqrt(config.head_dim), 0)
                heads.append(sum(s * value[head // group]
                                 for s, value in zip(share, values)))
            rows.append(w("self_attn.o_proj") @ torch.cat(heads))
        made.append((keys, values))
        x = x + torch.stack(rows)
        normed = norm(x, w("post_attention_layernorm"))
        gate = normed @ w("mlp.gate_proj").T
        inner = gate * torch.sigmoid(gate) * (normed @ w("mlp.up_proj").T)
        x = x + inner @ w("mlp.down_proj").T
    x = norm(x, weights["model.norm.weight"])
    return x @ weights["model.embed_tokens.weight"].T, made


def dense_loss(full, pruned, row, spans, weights):
    """Mean loss per target, and its gradients by the pruned model's names."""
    full_w = {n: t.double() for n, t in full.state_dict().items()}
    leaves = {n: t.double().clone().requires_grad_()
              for n, t in pruned.state_dict().items()}
    ids = torch.tensor(row)
    empty = [([], [])] * full.config.num_hidden_layers
    with torch.no_grad():
        full_logits, full_kv = by_hand(full_w, full.config, ids, 0, empty)
    total, count = 0.0, 0
    for start, length in spans:
        prompt = [(keys[:start], values[:start]) for keys, values in full_kv]
        answer = ids[start:start + length]
        if length < 2:
            continue
        logits, _ = by_hand(
            leaves, pruned.config, answer[:-1], start, prompt)
        log_q = torch.log_softmax(logits, -1)
        for step in range(length - 1):
            total = total - weights.ce * log_q[step, answer[step + 1]]
            warm = weights.temperature
            p = torch.softmax(full_logits[start + step] / warm, -1)
            warm_q = torch.log_softmax(logits[step] / warm, -1)
            total = total + weights.kl * warm ** 2 * (
                p * (p.log() - warm_q)).sum()
            count += 1
    loss = total / count
    loss.backward()
    return float(loss), {name: leaf.grad for name, leaf in leaves.items()}


class TwoStageTest(unittest.TestCase):
    def setUp(self):
        self.generator = torch.Generator().manual_seed(7)
        self.full = tiny(1)
        self.pruned = tiny(2, width=13, inner=17)

    def loss_of(self, batch, weights, student=None):
        student = student or Student(self.pruned)
        student.zero_grad(set_to_none=True)
        sums = TwoStage(self.full, weights)(student, batch)
        (sums.loss / sums.tokens).backward()
        return sums

    def test_loss_and_gradients_equal_the_dense_construction(self):
        spans = [(4, 5), (12, 2), (16, 4)]
        row, _ = random_row(self.generator, 20, spans)
        for weights in (LossWeights(1.0, 0.0), LossWeights(0.0, 1.0),
                        LossWeights(0.7, 1.3, 2.5)):
            expected, gradients = dense_loss(
                self.full, self.pruned, row, spans, weights)
            sums = self.loss_of(make_batch([(row, spans)]), weights)
            self.assertEqual(float(sums.tokens), 4 + 1 + 3)
            self.assertAlmostEqual(
                float(sums.loss / sums.tokens), expected, places=4)
            for name, parameter in self.pruned.named_parameters():
                torch.testing.assert_close(
                    parameter.grad.double(), gradients[name],
                    rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")
        # The construction can tell: one position off is seen.
        other, _ = dense_loss(
            self.full, self.pruned, row, [(5, 4), (12, 2), (16, 4)], weights)
        self.assertGreater(abs(other - expected), 1e-2)

    def test_padding_has_no_effect(self):
        rows = [random_row(self.generator, 18, [(3, 4), (9, 6)]),
                random_row(self.generator, 7, [(5, 2)]),
                random_row(self.generator, 30, [(1, 1), (10, 12)]),
                random_row(self.generator, 5, [(4, 1)])]
        weights = LossWeights(1.0, 0.5)
        for objective in (TwoStage(self.full, weights),
                          SingleStage(self.full, weights)):
            student = Student(self.pruned)
            student.zero_grad(set_to_none=True)
            alone = 0.0
            for row in rows:
                sums = objective(student, make_batch([row]))
                sums.loss.backward()
                alone += float(sums.loss)
            gradients = {n: p.grad.clone()
                         for n, p in student.named_parameters()}
            student.zero_grad(set_to_none=True)
            together = objective(student, make_batch(rows, width=41))
            together.loss.backward()
            self.assertAlmostEqual(
                float(together.loss) / alone, 1.0, places=5)
            self.assertEqual(float(together.tokens), objective.num_targets(
                make_batch(rows)))
            for name, parameter in student.named_parameters():
                torch.testing.assert_close(
                    parameter.grad, gradients[name], rtol=1e-3, atol=1e-4)

    def test_every_split_of_a_sequence_is_as_if_it_were_alone(self):
        ids, _ = random_row(self.generator, 16, [])
        splits = [(start, length) for start in range(1, 15)
                  for length in range(2, 17 - start)]
        weights = LossWeights(0.4, 0.6)
        alone = sum(float(self.loss_of(
            make_batch([(ids[:start + length], [(start, length)])]),
            weights).loss) for start, length in splits)
        # Overlapping answers of one row are independent of each other.
        together = self.loss_of(make_batch([(ids, splits)]), weights)
        self.assertAlmostEqual(float(together.loss) / alone, 1.0, places=5)
        self.assertEqual(int(together.answers), len(splits))

    def test_a_pair_of_one_model_is_that_model(self):
        rows = [random_row(self.generator, 18, [(3, 4), (9, 6)]),
                random_row(self.generator, 9, [(5, 4)])]
        batch = make_batch(rows)
        student = Student(self.full)
        two = TwoStage(self.full, LossWeights(1.0, 1.0))(student, batch)
        self.assertLess(abs(float(two.kl)), 1e-3)
        # The single-stage loss of the same targets: answers less token 0.
        later = Batch(batch.ids, batch.positions, [
            Answer(a.row, a.start + 1, a.length - 1) for a in batch.spans])
        one = SingleStage(None, LossWeights())(student, later)
        self.assertAlmostEqual(float(two.ce), float(one.ce), places=3)
        self.assertEqual(float(two.tokens), float(one.tokens))

    def test_single_stage_is_next_token_prediction(self):
        ids, spans = random_row(self.generator, 14, [(3, 4), (10, 3)])
        sums = SingleStage(None, LossWeights())(
            Student(self.pruned), make_batch([(ids, spans)]))
        weights = {n: t.double() for n, t in self.pruned.state_dict().items()}
        logits, _ = by_hand(weights, self.pruned.config, torch.tensor(ids), 0,
                            [([], [])] * 2)
        log_q = torch.log_softmax(logits, -1)
        wanted = [3, 4, 5, 6, 10, 11, 12]
        expected = -sum(float(log_q[at - 1, ids[at]]) for at in wanted)
        self.assertAlmostEqual(float(sums.loss), expected, places=3)
        self.assertEqual(float(sums.tokens), len(wanted))

    def test_prompt_in_sight_is_exactly_the_prompt(self):
        batch = make_batch([random_row(self.generator, 20, [(4, 3), (11, 5)])])
        rows = two_stage.decode_rows(batch)
        with torch.no_grad():
            _, kv = self.full(batch.ids, batch.positions)
            before = two_stage.run_pruned(self.pruned, rows, kv)
            for k, v in kv:
                k[:, :, 4:] = 7.0
                v[:, :, 4:] = 7.0
            after = two_stage.run_pruned(self.pruned, rows, kv)
        first = rows.answers[0] == 0
        self.assertTrue(torch.equal(before[0, first], after[0, first]))
        self.assertFalse(torch.equal(before[0, ~first], after[0, ~first]))

    def test_marks_count_tokens_and_whole_answers(self):
        logits = torch.full((5, VOCAB), -5.0)
        targets = torch.tensor([1, 2, 3, 4, 5])
        for row, choice in enumerate([1, 2, 3, 9, 5]):
            logits[row, choice] = 5.0
        sums = two_stage.loss_sums(
            logits, None, targets, torch.tensor([0, 0, 2, 2, 5]),
            LossWeights())
        self.assertEqual(int(sums.right), 4)
        self.assertEqual(int(sums.answers), 3)
        self.assertEqual(int(sums.exact), 2)

    def test_nothing_to_learn_is_a_loss_of_zero(self):
        batch = make_batch([random_row(self.generator, 6, [(5, 1)])])
        for weights in (LossWeights(1.0, 0.0), LossWeights(1.0, 1.0)):
            student = Student(self.pruned)
            student.zero_grad(set_to_none=True)
            sums = TwoStage(self.full, weights)(student, batch)
            sums.loss.backward()
            self.assertEqual(float(sums.loss), 0.0)
            self.assertEqual(float(sums.tokens), 0.0)
            self.assertTrue(all(
                float(p.grad.abs().max()) == 0 for p in student.parameters()
                if p.grad is not None))

    def test_gradient_checkpointing_changes_nothing(self):
        batch = make_batch([random_row(self.generator, 20, [(4, 3), (11, 5)])])
        self.loss_of(batch, LossWeights(1.0, 1.0))
        plain = {n: p.grad.clone()
                 for n, p in self.pruned.named_parameters()}
        self.pruned.gradient_checkpointing = True
        self.pruned.train()
        self.loss_of(batch, LossWeights(1.0, 1.0))
        for name, parameter in self.pruned.named_parameters():
            torch.testing.assert_close(parameter.grad, plain[name])

    def test_a_step_sees_its_prompt_and_its_answer_so_far(self):
        batch = make_batch([([9, 8, 7, 6, 5, 4, 3], [(1, 2), (4, 3)])])
        mask = two_stage.rows_mask(two_stage.decode_rows(batch), 4)
        self.assertEqual(mask.shape, (1, 1, 1, 3, 7))
        seen = (mask[0, 0, 0] == 0).int().tolist()
        self.assertEqual(seen, [[1, 0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1, 0],
                                [1, 1, 1, 1, 0, 1, 1]])

    def test_rows_hold_answers_side_by_side(self):
        batch = make_batch([([9, 8, 7, 6, 5, 4, 3], [(1, 2), (4, 3)]),
                            ([1, 2, 3, 4], [(3, 1)])])
        rows = two_stage.decode_rows(batch)
        self.assertEqual(rows.ids[0].tolist(), [8, 5, 4])
        self.assertEqual(rows.targets.tolist(), [[7, 4, 3], [IGNORED] * 3])
        self.assertEqual(rows.positions[0].tolist(), [1, 4, 5])
        self.assertEqual(rows.teacher_at[0].tolist(), [1, 4, 5])
        self.assertEqual(rows.sight[0].tolist(), [1, 4, 4])
        self.assertEqual(rows.answers.tolist(), [[0, 1, 1], [-1] * 3])


if __name__ == "__main__":
    unittest.main()

"""The model against the formulas in numpy, for every architecture."""

import math
import random
import unittest
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from tests.training import dense_model, tiny_models
from training import model as model_module
from training.model import (
    MASKED, Llama, causal_mask, fused_attention, init_weights,
    inverse_frequencies, plain_attention)
from training.model_config import RopeScaling

SEED = random.randrange(1 << 30)


def reference_product(q, k, v, attn_mask=None, is_causal=False):
    """torch 2's product, as its documentation writes it."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if is_causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ v


class ModelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.seed = SEED
        print(f"seed {SEED}", flush=True)

    def setUp(self):
        torch.manual_seed(self.seed)

    def test_logits_are_those_of_the_formulas(self):
        for name, config in tiny_models.ALL.items():
            model = tiny_models.make(config, self.seed)
            ids = tiny_models.rows_of_ids(self.seed, [23])[0]
            positions = np.arange(100, 123)
            expected, _ = dense_model.run(
                dense_model.numpy_state(model), config, ids, positions)
            with torch.no_grad():
                hidden, _ = model(
                    torch.tensor([ids]), torch.from_numpy(positions)[None])
                got = model.logits(hidden)[0].double().numpy()
            scale = np.abs(expected).max()
            self.assertLess(np.abs(got - expected).max(), 2e-5 * scale, name)

    def test_a_cache_changes_nothing(self):
        for name, config in tiny_models.ALL.items():
            model = tiny_models.make(config, self.seed)
            ids = torch.tensor(tiny_models.rows_of_ids(self.seed, [17, 17]))
            at = torch.arange(17).expand(2, 17)
            with torch.no_grad():
                whole, _ = model(ids, at)
                first, kv = model(ids[:, :9], at[:, :9])
                second, kv = model(ids[:, 9:16], at[:, 9:16], kv)
                third, _ = model(ids[:, 16:], at[:, 16:], kv)
            parts = torch.cat([first, second, third], 1)
            torch.testing.assert_close(
                parts, whole, rtol=1e-4, atol=1e-4, msg=name)

    def test_frequencies_of_llama_3_1(self):
        # Wavelengths below 2048 stay, above 8192 grow eightfold.
        scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
        plain = inverse_frequencies(128, 500000.0, None)
        scaled = inverse_frequencies(128, 500000.0, scaling)
        kinds = set()
        for before, after in zip(plain, scaled):
            wavelength = 2 * math.pi / before
            if wavelength < 2048:
                kinds.add("kept")
                self.assertEqual(after, before)
            elif wavelength > 8192:
                kinds.add("slowed")
                self.assertEqual(after, before / 8)
            else:
                kinds.add("blended")
                self.assertLess(before / 8, after)
                self.assertLess(after, before)
        self.assertEqual(kinds, {"kept", "slowed", "blended"})
        config = tiny_models.LLAMA3
        np.testing.assert_allclose(
            inverse_frequencies(8, 500.0, config.rope_scaling),
            dense_model.frequencies(config), rtol=1e-12)

    def test_the_fused_product_is_the_plain_one(self):
        q = torch.randn(2, 6, 5, 8)
        k, v = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
        sights = torch.rand(2, 1, 1, 5, 9) < 0.5
        sights[..., 0] = True
        per_head = torch.rand(2, 3, 2, 5, 9) < 0.5
        per_head[..., 0] = True
        hide = lambda seen: torch.where(seen, 0.0, MASKED)
        with mock.patch.object(
                F, "scaled_dot_product_attention", reference_product,
                create=True):
            for mask in (None, causal_mask(5, 4), hide(sights),
                         hide(per_head)):
                torch.testing.assert_close(
                    fused_attention(q, k, v, mask),
                    plain_attention(q, k, v, mask), rtol=1e-5, atol=1e-5)
            for count in (1, 5):  # one query over a cache; no cache
                short = q[:, :, :count]
                keys = k if count == 1 else k[:, :, :5]
                values = v if count == 1 else v[:, :, :5]
                torch.testing.assert_close(
                    fused_attention(short, keys, values, None),
                    plain_attention(short, keys, values, None),
                    rtol=1e-5, atol=1e-5)

    def test_the_whole_model_runs_on_the_fused_product(self):
        model = tiny_models.make(tiny_models.QWEN3, self.seed)
        ids = torch.tensor(tiny_models.rows_of_ids(self.seed, [11]))
        at = torch.arange(11)[None]
        with torch.no_grad():
            plain, _ = model(ids, at)
            with mock.patch.object(
                    F, "scaled_dot_product_attention", reference_product,
                    create=True), mock.patch.object(
                        model_module, "_FUSED", True):
                fused, _ = model(ids, at)
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)

    def test_recomputed_layers_have_the_same_gradients(self):
        ids = torch.tensor(tiny_models.rows_of_ids(self.seed, [12, 12]))
        at = torch.arange(12).expand(2, 12)
        for autocast in (False, True):
            gradients = []
            for again in (False, True):
                model = tiny_models.make(tiny_models.QWEN2, self.seed)
                model.gradient_checkpointing = again
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    hidden, kv = model(ids, at)
                    loss = model.logits(hidden).float().pow(2).mean()
                    loss = loss + kv[1][0].float().pow(2).mean()
                loss.backward()
                gradients.append([p.grad for p in model.parameters()])
            for one, other in zip(*gradients):
                self.assertTrue(torch.equal(one, other))
            self.assertGreater(float(gradients[0][3].abs().max()), 0.0)

    def test_a_bf16_model_stays_in_bf16(self):
        model = tiny_models.make(tiny_models.QWEN3, self.seed)
        ids = torch.tensor(tiny_models.rows_of_ids(self.seed, [12]))
        at = torch.arange(12)[None]
        with torch.no_grad():
            wide, _ = model(ids, at)
            narrow, kv = model.to(torch.bfloat16)(ids, at)
        self.assertEqual(narrow.dtype, torch.bfloat16)
        self.assertEqual(kv[0][0].dtype, torch.bfloat16)
        near = F.cosine_similarity(wide, narrow.float(), dim=-1)
        self.assertGreater(float(near.min()), 0.99)

    def test_fresh_weights_are_a_function_of_the_seed(self):
        for name, config in tiny_models.ALL.items():
            one, other = Llama(config), Llama(config)
            for model in (one, other):
                init_weights(model, 7)
            for key, tensor in one.state_dict().items():
                self.assertTrue(
                    torch.equal(tensor, other.state_dict()[key]), (name, key))

    def test_a_model_without_memory_has_all_names(self):
        for config in tiny_models.ALL.values():
            real, meta = Llama(config), Llama(config, device="meta")
            self.assertEqual(
                {n: t.shape for n, t in real.state_dict().items()},
                {n: t.shape for n, t in meta.state_dict().items()})
            self.assertTrue(all(p.is_meta for p in meta.parameters()))


if __name__ == "__main__":
    unittest.main()

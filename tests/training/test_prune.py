import copy
import unittest

import numpy as np
import torch

from training import prune
from training.model import Llama, ModelConfig, init_weights, rope_tables

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=20, intermediate_size=28, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8)


def tiny(seed=1):
    model = Llama(CONFIG)
    init_weights(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            elif "o_proj" in name or "down_proj" in name:
                parameter.mul_(10.0)
    return model


def plain_importance(model, samples):
    """The same scores in numpy, straight from the formulas."""
    state = {name: tensor.double().numpy()
             for name, tensor in model.state_dict().items()}
    config = model.config
    num_heads, dim = config.num_attention_heads, config.head_dim

    def norm(x, weight):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps)
        return x / scale * weight

    hidden = np.zeros((2 * config.num_hidden_layers, config.hidden_size))
    inner = np.zeros((config.num_hidden_layers, config.intermediate_size))
    for ids, positions in samples:
        cos, sin = (table[0, 0].double().numpy() for table in
                    rope_tables(positions, dim, config.rope_theta))
        x = state["model.embed_tokens.weight"][ids[0].numpy()]
        for index in range(config.num_hidden_layers):
            at = f"model.layers.{index}."
            w = lambda name: state[at + name + ".weight"]
            h = norm(x, w("input_layernorm"))
            hidden[2 * index] += np.abs(h).mean(0) ** 2

            def heads(name):
                return (h @ w(f"self_attn.{name}_proj").T).reshape(
                    len(h), -1, dim).transpose(1, 0, 2)

            def rope(y):
                half = dim // 2
                turned = np.concatenate([-y[..., half:], y[..., :half]], -1)
                return y * cos + turned * sin

            q, k, v = rope(heads("q")), rope(heads("k")), heads("v")
            group = num_heads // config.num_key_value_heads
            k, v = np.repeat(k, group, 0), np.repeat(v, group, 0)
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim)
            scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out = (weights @ v).transpose(1, 0, 2).reshape(len(h), -1)
            x = x + out @ w("self_attn.o_proj").T
            h = norm(x, w("post_attention_layernorm"))
            hidden[2 * index + 1] += np.abs(h).mean(0) ** 2
            gate = h @ w("mlp.gate_proj").T
            act = gate / (1 + np.exp(-gate)) * (h @ w("mlp.up_proj").T)
            inner[index] += np.abs(act).mean(0) ** 2
            x = x + act @ w("mlp.down_proj").T
    return np.sqrt(hidden).sum(0), np.sqrt(inner)


class PruneTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tiny()
        torch.manual_seed(3)
        cls.samples = [(torch.randint(0, 50, (1, length)),
                        torch.arange(length)[None])
                       for length in (5, 9, 14, 3)]

    def test_importance_equals_an_independent_computation(self):
        importance = prune.measure_importance(self.model, self.samples)
        hidden, inner = plain_importance(self.model, self.samples)
        np.testing.assert_allclose(importance.hidden.numpy(), hidden, rtol=1e-4)
        for got, expected in zip(importance.intermediate, inner):
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)
        kept = prune.choose(importance, 11, 15)
        self.assertEqual(kept.hidden, sorted(np.argsort(-hidden)[:11].tolist()))
        for got, expected in zip(kept.intermediate, inner):
            self.assertEqual(got, sorted(np.argsort(-expected)[:15].tolist()))

    def test_the_cut_equals_zeroing_what_is_not_kept(self):
        # Scaled norms make up for RMSNorm's division by another width.
        kept = prune.choose(
            prune.measure_importance(self.model, self.samples), 11, 15)
        pruned = prune.cut(self.model, kept)
        masked = copy.deepcopy(self.model)
        gone = sorted(set(range(20)) - set(kept.hidden))
        with torch.no_grad():
            masked.model.embed_tokens.weight[:, gone] = 0
            for index, layer in enumerate(masked.model.layers):
                layer.self_attn.o_proj.weight[gone] = 0
                layer.mlp.down_proj.weight[gone] = 0
                lost = sorted(set(range(28)) - set(kept.intermediate[index]))
                layer.mlp.down_proj.weight[:, lost] = 0
            for module in masked.modules():
                if hasattr(module, "eps"):
                    module.eps *= 11 / 20
                    module.weight *= (11 / 20) ** 0.5
        ids, positions = self.samples[1]
        with torch.no_grad():
            ours = pruned.logits(pruned(ids, positions)[0])
            reference = masked.logits(masked(ids, positions)[0])
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)

    def test_shapes_keep_heads_and_layers(self):
        kept = prune.choose(
            prune.measure_importance(self.model, self.samples), 11, 15)
        config = prune.cut(self.model, kept).config
        self.assertEqual((config.hidden_size, config.intermediate_size),
                         (11, 15))
        for name in ("num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "vocab_size"):
            self.assertEqual(getattr(config, name), getattr(CONFIG, name))

    def test_widths_are_odd(self):
        for width in range(10, 400):
            cut = prune.odd_width(width, 0.55)
            self.assertEqual(cut % 2, 1)
            self.assertLessEqual(abs(cut - 0.55 * width), 1.0)


if __name__ == "__main__":
    unittest.main()

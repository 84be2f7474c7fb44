"""KV maps as files, and what they compute."""

import pathlib
import tempfile
import unittest

import torch

from training import distil_pair, kv_map
from training.errors import UserError
from training.kv_map import KvMap, Projection
from training.model_config import ModelConfig
from training.safetensors_file import TensorReader

FULL = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8)


class KvMapTest(unittest.TestCase):
    def test_a_projection_maps_all_heads_of_a_token(self):
        full = ModelConfig(vocab_size=9, **FULL)
        pruned = ModelConfig(vocab_size=9, **{
            **FULL, "num_hidden_layers": 2, "num_key_value_heads": 1})
        generator = torch.Generator().manual_seed(3)
        kv = [tuple(torch.randn(2, 2, 5, 8, generator=generator)
                    for _ in "kv") for _ in range(3)]
        maps = Projection([0, 2], full, pruned)
        with torch.no_grad():
            for parameter in maps.parameters():
                parameter.normal_(generator=generator)
        got = maps(kv)
        for layer, source in enumerate((0, 2)):
            for half, weights in ((0, maps.k), (1, maps.v)):
                for token in range(5):
                    flat = torch.cat([kv[source][half][1, 0, token],
                                      kv[source][half][1, 1, token]])
                    torch.testing.assert_close(
                        got[layer][half][1, 0, token], weights[layer] @ flat)

    def test_a_bias_is_added_and_written_where_it_is_not_zero(self):
        full = ModelConfig(vocab_size=9, **FULL)
        maps = Projection([0, 1, 2], full, full, has_bias=True)
        kv = [(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8))] * 3
        state = {f"kv_transform.{name}": parameter.detach().clone()
                 for name, parameter in maps.named_parameters()}
        state["kv_transform.v_bias.1"] = torch.arange(16.0)
        distil_pair._set_maps(maps, state)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            kv_map.write(folder, maps)
            stored = TensorReader(folder / "kv_map.safetensors").names()
            again = kv_map.read(folder / "kv_map.json", full, full)
        self.assertEqual([n for n in stored if n.endswith("bias")],
                         ["layers.1.v.bias"])
        for found in (maps, again):
            for layer, (k, v) in enumerate(found(kv)):
                self.assertFalse(k.any())
                for token in range(4):
                    self.assertEqual(v[0, :, token].flatten().tolist(),
                                     list(range(16)) if layer == 1
                                     else [0] * 16)

    def test_files_are_read_back_and_bad_ones_named(self):
        full = ModelConfig(vocab_size=9, **FULL)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            maps = Projection([0, 1, 2], full, full)
            with torch.no_grad():
                maps.v[2].normal_()
            kv_map.write(folder, maps)
            again = kv_map.read(folder / "kv_map.json", full, full)
            self.assertTrue(torch.equal(again.v[2], maps.v[2]))
            kv_map.write(folder, None)
            self.assertIsNone(
                kv_map.read(folder / "kv_map.json", full, full))
            for text, message in (
                    ('{"kind": "x"}', "kind must be one of"),
                    ('{"kind": "layers"}', "has the members kind, layers"),
                    ('{"kind": "layers", "layers": [1, 0, 2]}', "ascend"),
                    ('{"kind": "layers", "layers": [0, 1, 3]}', "layer 3"),
                    ('{"kind": "layers", "layers": [0, 1]}', "2 layers"),
                    ('{"kind": "projection", "layers": [0, 1, 2], '
                     '"file": "../x"}', "plain file name")):
                (folder / "kv_map.json").write_text(text)
                with self.assertRaisesRegex(UserError,
                                            "kv_map.json: .*" + message):
                    kv_map.read(folder / "kv_map.json", full, full)
        self.assertEqual(KvMap([0]).kind, "layers")


if __name__ == "__main__":
    unittest.main()

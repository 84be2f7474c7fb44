import json
import pathlib
import struct
import tempfile
import unittest

import torch

from training import checkpoint
from training.model import Llama, ModelConfig, init_weights

CONFIG = ModelConfig(
    vocab_size=40, hidden_size=15, intermediate_size=21, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8)


class CheckpointTest(unittest.TestCase):
    def test_a_checkpoint_comes_back_rounded_to_bf16(self):
        model = Llama(CONFIG)
        init_weights(model, 1)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            checkpoint.save_checkpoint(folder, model, 38, 39)
            loaded, config = checkpoint.load_checkpoint(folder)
            generation = json.loads(
                (folder / "generation_config.json").read_text())
        self.assertEqual(loaded.config, CONFIG)
        self.assertEqual(config["architectures"], ["LlamaForCausalLM"])
        self.assertEqual(config["torch_dtype"], "bfloat16")
        self.assertEqual(generation["eos_token_id"], 39)
        self.assertIs(generation["do_sample"], False)
        stored = loaded.state_dict()
        for name, tensor in model.state_dict().items():
            expected = tensor.to(torch.bfloat16).float()
            self.assertTrue(torch.equal(stored[name], expected), name)

    def test_the_layout_of_the_file(self):
        tensors = {"b": torch.tensor([[1.0, -2.0, 0.5]]),
                   "a": torch.tensor([3.0])}
        with tempfile.TemporaryDirectory() as name:
            path = pathlib.Path(name) / "model.safetensors"
            checkpoint.write_safetensors(path, tensors)
            content = path.read_bytes()
        (header_bytes,) = struct.unpack("<Q", content[:8])
        self.assertEqual(header_bytes % 8, 0)
        header = json.loads(content[8:8 + header_bytes])
        self.assertEqual(header["a"], {
            "dtype": "BF16", "shape": [1], "data_offsets": [0, 2]})
        self.assertEqual(header["b"], {
            "dtype": "BF16", "shape": [1, 3], "data_offsets": [2, 8]})
        # bf16 of 3, 1, -2 and 0.5, least byte first.
        self.assertEqual(content[8 + header_bytes:],
                         bytes.fromhex("4040803f00c0003f"))

    def test_rounding_is_to_nearest_even(self):
        ulp = 2.0 ** -7
        values = torch.tensor([1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.6 * ulp])
        rounded = checkpoint.from_bf16_bits(checkpoint.to_bf16_bits(values))
        self.assertEqual(rounded.tolist(), [1.0, 1 + 2 * ulp, 1 + ulp])


if __name__ == "__main__":
    unittest.main()

import fcntl
import json
import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

import torch

from tests.training import tiny_models
from training import checkpoint, json_file, safetensors_file
from training.errors import UserError
from training.model import Llama, ModelConfig, init_weights
from training.safetensors_file import Spec, TensorReader, write_tensors

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
        tensors = {"a": torch.tensor([3.0]),
                   "b": torch.tensor([[1.0, -2.0, 0.5]])}
        with tempfile.TemporaryDirectory() as name:
            path = pathlib.Path(name) / "model.safetensors"
            safetensors_file.write_file(
                path, {"a": Spec((1,)), "b": Spec((1, 3))},
                tensors.__getitem__)
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
        with tempfile.TemporaryDirectory() as name:
            write_tensors(pathlib.Path(name), {"a": Spec((3,))},
                          lambda _: values)
            rounded = TensorReader(pathlib.Path(name)).read("a")
        self.assertEqual(rounded.tolist(), [1.0, 1 + 2 * ulp, 1 + ulp])


class InFolder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def assert_refused(self, pattern, function, *args):
        with self.assertRaisesRegex(UserError, pattern) as caught:
            function(*args)
        text = str(caught.exception)
        self.assertTrue(text.startswith(str(self.folder)), text)


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape),
            "data_offsets": list(offsets), **more}


class ReaderTest(InFolder):
    def test_every_type_comes_back(self):
        tensors = {name: torch.randn(3, 5).to(dtype) for name, dtype in (
            ("a", torch.float32), ("b", torch.float16), ("c", torch.bfloat16))}
        tensors["scalar"] = torch.tensor(2.5)
        tensors["empty"] = torch.zeros(0, 7)
        write_tensors(
            self.folder, {name: Spec(tuple(t.shape), t.dtype)
                          for name, t in tensors.items()}, tensors.__getitem__)
        reader = TensorReader(self.folder)
        self.assertEqual(set(reader.names()), set(tensors))
        for name, tensor in tensors.items():
            self.assertEqual(reader.shape(name), tuple(tensor.shape))
            stored = reader.read(name, None)
            self.assertEqual(stored.dtype, tensor.dtype)
            self.assertTrue(torch.equal(stored, tensor))
            self.assertTrue(torch.equal(reader.read(name), tensor.float()))

    def test_shards_and_their_index(self):
        tensors = {f"t{at}": torch.randn(10) for at in range(7)}
        specs = {name: Spec((10,), torch.float32) for name in tensors}
        paths = write_tensors(
            self.folder, specs, tensors.__getitem__, max_shard_bytes=100)
        self.assertEqual([path.name for path in paths], [
            "model-00001-of-00004.safetensors",
            "model-00002-of-00004.safetensors",
            "model-00003-of-00004.safetensors",
            "model-00004-of-00004.safetensors",
            "model.safetensors.index.json"])
        index = json.loads(paths[-1].read_text())
        self.assertEqual(index["metadata"]["total_size"], 280)
        self.assertEqual(index["weight_map"]["t2"], paths[1].name)
        reader = TensorReader(self.folder)
        for name, tensor in tensors.items():
            self.assertTrue(torch.equal(reader.read(name), tensor))
        self.assertEqual(sorted(os.listdir(self.folder)),
                         sorted(path.name for path in paths))

    def test_bad_indices(self):
        index = self.folder / "model.safetensors.index.json"
        tensors = {"a": torch.zeros(2)}
        one = self.folder / "one.safetensors"
        safetensors_file.write_file(
            one, {"a": Spec((2,))}, tensors.__getitem__)
        for where, pattern in (
            ([], "weight_map"), ({}, "weight_map"),
            ({"weight_map": {"a": "../one.safetensors"}}, "plain name"),
            ({"weight_map": {"a": "/etc/passwd"}}, "plain name"),
            ({"weight_map": {"a": 3}}, "plain name"),
            ({"weight_map": {"a": "two.safetensors"}}, "No such file"),
            ({"weight_map": {"b": "one.safetensors"}}, "says nowhere"),
            ({"weight_map": {"a": "one.safetensors",
                             "b": "one.safetensors"}}, "'b': is not in"),
        ):
            index.write_text(json.dumps(where))
            self.assert_refused(pattern, TensorReader, self.folder)
        index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
        TensorReader(self.folder)
        one_more = self.folder / "model.safetensors"
        one_more.write_bytes(one.read_bytes())
        self.assert_refused("stale", TensorReader, self.folder)

    def test_bad_files(self):
        good, eight = entry(), bytes(8)
        cases = [
            (b"", "is truncated"), (b"1234567", "is truncated"),
            (struct.pack("<Q", 1 << 63) + eight, "has a header of"),
            (struct.pack("<Q", 9) + eight, "is truncated"),
            (file_of(b"[]"), "must be a JSON object"),
            (file_of(b"{"), "not valid JSON"),
            (file_of(b"\xff{}"), "not valid JSON"),
            (file_of(b"[" * 100000), "nested too deeply"),
            (file_of(b'{"a":' + json.dumps(good).encode() + b',"a":'
                     + json.dumps(good).encode() + b"}", eight),
             "'a' comes twice"),
            (file_of({"a": []}), "must have a dtype"),
            (file_of({"a": entry(more=1)}, eight), "must have a dtype"),
            (file_of({"a": entry(dtype="F31")}, eight), "is unknown"),
            (file_of({"a": entry(dtype=["F32"])}, eight), "is unknown"),
            (file_of({"a": entry(shape=[-2])}, eight), "list of sizes"),
            (file_of({"a": entry(shape=[True])}, eight), "list of sizes"),
            (file_of({"a": entry(shape=[2.0])}, eight), "list of sizes"),
            (file_of({"a": entry(shape=[1] * 17)}, eight), "list of sizes"),
            (file_of({"a": entry(shape=[1 << 62, 1 << 62])}, eight), "takes"),
            (file_of({"a": entry(shape=[3])}, eight), "takes 12 bytes"),
            (file_of({"a": entry(offsets=[8, 0])}, eight), "ascending"),
            (file_of({"a": entry(offsets=[0, 8, 8])}, eight), "ascending"),
            (file_of({"a": good}, bytes(7)), "is truncated"),
            (file_of({"a": good}, bytes(9)), "belong to no tensor"),
            (file_of({"a": good, "b": entry(offsets=[4, 12])}, bytes(12)),
             "'b': its data overlap"),
            (file_of({"a": good, "b": entry(offsets=[9, 17])}, bytes(17)),
             "'b': its data leave a gap"),
        ]
        path = self.folder / "model.safetensors"
        for content, pattern in cases:
            path.write_bytes(content)
            self.assert_refused(pattern, TensorReader, self.folder)
        path.write_bytes(file_of({"a": entry("I64", [1])}, eight))
        self.assert_refused("dtype I64 is not", TensorReader(path).read, "a")

    def test_a_file_that_shrinks_after_it_was_opened(self):
        path = self.folder / "model.safetensors"
        path.write_bytes(file_of({"a": entry()}, bytes(8)))
        reader = TensorReader(path)
        os.truncate(path, path.stat().st_size - 1)
        self.assert_refused("'a': the file is truncated", reader.read, "a")

    def test_random_damage_ends_in_a_user_error(self):
        print("seed 5")
        generator = torch.Generator().manual_seed(5)
        path = self.folder / "model.safetensors"
        model = tiny_models.make(tiny_models.LLAMA, 1)
        tiny_models.save(self.folder, model)
        whole = path.read_bytes()
        (header_bytes,) = struct.unpack("<Q", whole[:8])
        refused = 0
        for _ in range(300):
            at, value = (int(torch.randint(high, (1,), generator=generator))
                         for high in (header_bytes + 8, 256))
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1:])
            try:
                checkpoint.load_checkpoint(self.folder)
            except UserError:
                refused += 1
        self.assertGreater(refused, 200)


class FolderTest(InFolder):
    def test_models_of_all_architectures_come_back(self):
        for name, config in tiny_models.ALL.items():
            model = tiny_models.rounded(tiny_models.make(config, 3))
            folder = self.folder / name
            tiny_models.save(folder, model, max_shard_bytes=5000)
            loaded, raw = checkpoint.load_checkpoint(folder)
            self.assertEqual(loaded.config, config)
            self.assertEqual(raw["transformers_version"], "4.45.0")
            stored = loaded.state_dict()
            self.assertEqual(list(stored), list(model.state_dict()))
            for key, tensor in model.state_dict().items():
                self.assertTrue(torch.equal(stored[key], tensor), key)
            half, _ = checkpoint.load_checkpoint(folder, torch.bfloat16)
            self.assertEqual(half.model.norm.weight.dtype, torch.bfloat16)

    def test_saving_again_keeps_what_config_says(self):
        model = tiny_models.make(tiny_models.QWEN3, 3)
        tiny_models.save(self.folder / "a", model, dtype=torch.float32,
                         torch_dtype="float32", rope_scaling=None)
        loaded, raw = checkpoint.load_checkpoint(self.folder / "a")
        checkpoint.save_checkpoint(self.folder / "b", loaded, stated=raw)
        again, second = checkpoint.load_checkpoint(self.folder / "b")
        self.assertEqual(second, raw)
        self.assertEqual(again.config, loaded.config)
        self.assertEqual(again.config.dtype, "float32")
        for name, tensor in again.state_dict().items():
            self.assertTrue(torch.equal(tensor, model.state_dict()[name]))

    def test_tensors_that_do_not_fit_config(self):
        model = tiny_models.make(tiny_models.LLAMA, 3)
        state = model.state_dict()
        head = {"lm_head.weight": state["model.embed_tokens.weight"]}
        tiny_models.save(self.folder, model)

        def load_with(tensors):
            write_tensors(
                self.folder, {name: Spec(tuple(tensor.shape))
                              for name, tensor in tensors.items()},
                tensors.__getitem__)
            checkpoint.load_checkpoint(self.folder)

        load_with({**state, **head})  # a copy of the tied head
        load_with({**state, "model.layers.0.self_attn.rotary_emb.inv_freq":
                   torch.zeros(4)})
        other = {"lm_head.weight": head["lm_head.weight"] + 1}
        self.assert_refused("tie_word_embeddings", load_with,
                            {**state, **other})
        self.assert_refused("'x': a LlamaForCausalLM of this config.json has "
                            "no such one", load_with,
                            {**state, "x": torch.zeros(1)})
        norm = "model.layers.1.input_layernorm.weight"
        self.assert_refused(
            rf"{norm}' is \[19\]; config.json asks for \[20\]", load_with,
            {**state, norm: torch.ones(19)})
        del state[norm]
        self.assert_refused(f"{norm}' is missing", load_with, state)

    def test_bad_folders(self):
        self.assert_refused("is no directory", checkpoint.load_checkpoint,
                            self.folder / "none")
        self.assert_refused("config.json: No such file",
                            checkpoint.load_checkpoint, self.folder)
        tiny_models.save(self.folder, tiny_models.make(tiny_models.LLAMA, 3))
        (self.folder / "model.safetensors").unlink()
        self.assert_refused("has neither", checkpoint.load_checkpoint,
                            self.folder)

    def test_a_new_folder_is_whole_or_absent(self):
        out = self.folder / "deep" / "out"
        with self.assertRaises(ZeroDivisionError):
            with checkpoint.new_folder(out) as partial:
                (partial / "file").write_text("half")
                raise ZeroDivisionError
        self.assertEqual(os.listdir(out.parent), [])
        out.mkdir()  # an empty one is taken
        with checkpoint.new_folder(out) as partial:
            (partial / "file").write_text("whole")
        self.assertEqual(os.listdir(out.parent), ["out"])
        self.assertEqual((out / "file").read_text(), "whole")
        # What a killed process left goes away, what a living one has stays.
        living, dead = (out.with_name(f".next.partial-{n}") for n in (1, 2))
        for folder in (living, dead):
            folder.mkdir()
        handle = os.open(living, os.O_RDONLY)
        self.addCleanup(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with checkpoint.new_folder(out.with_name("next")):
            pass
        self.assertEqual(sorted(os.listdir(out.parent)),
                         [living.name, "next", "out"])
        self.assert_refused("is not empty", checkpoint.check_new, out)
        self.assert_refused("no directory", checkpoint.check_new, out / "file")

    def test_digest_of_a_large_file(self):
        path = self.folder / "file"
        path.write_bytes(b"abc" * 1_000_000)
        out = subprocess.run(["sha256sum", path], capture_output=True,
                             check=True, text=True).stdout
        self.assertEqual(checkpoint.sha256_of(path), out.split()[0])

    def test_json_is_strict_and_never_half_written(self):
        for text, pattern in ((b'{"a": NaN}', "NaN is no number"),
                              (b'{"a": 1, "a": 2}', "'a' comes twice"),
                              (b"\xfe", "not valid JSON"),
                              (b"[" * 99999, "nested too deeply"),
                              (b"1" * 5000, "not valid JSON")):
            with self.assertRaisesRegex(UserError, pattern):
                json_file.parse_json(text, "x")
        path = self.folder / "a.json"
        checkpoint.write_json(path, {"a": "\ud800 and \u00e9"})
        self.assertEqual(checkpoint.read_json(path), {"a": "\ud800 and \u00e9"})
        with self.assertRaises(TypeError):
            checkpoint.write_json(path, {1j})
        self.assertEqual(checkpoint.read_json(path), {"a": "\ud800 and \u00e9"})
        self.assert_refused("is larger than", json_file.read_json, path, 3)


if __name__ == "__main__":
    unittest.main()

"""What pruning writes: tensors, config.json, the manifest, the KV map."""

import copy
import json
import os
import pathlib
import random
import tempfile
import unittest

import torch

from tests.training import dense_model, tiny_models
from tests.training.test_prune import LENGTHS, assert_leads, lead, samples_of
from training import checkpoint, manifest, prune
from training.errors import UserError
from training.safetensors_file import TensorReader

SEED = random.randrange(1 << 30)


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", flush=True)
        cls.rows = tiny_models.rows_of_ids(SEED, LENGTHS)

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def pruned(self, model, name="out", dtype=torch.bfloat16, **options):
        """Writes the model and prunes it: the decode model's folder."""
        full = self.folder / "full"
        if not full.exists():
            tiny_models.save(full, model, dtype)
        prune.prune_checkpoint(
            full, self.folder / name, self.rows, prune.Options(**options))
        return self.folder / name


class CutTest(Base):
    def test_the_cut_equals_zeroing_what_is_not_kept(self):
        # Scaled norms make up for RMSNorm's division by another width.
        for name in ("llama", "biased", "qwen2", "qwen3"):
            model = tiny_models.make(tiny_models.ALL[name], SEED)
            kept = prune.choose(prune.measure_importance(
                model, samples_of(self.rows)), 11, 15)
            pruned = prune.cut(model, kept)
            gone = sorted(set(range(20)) - set(kept.hidden))
            masked = copy.deepcopy(model)
            with torch.no_grad():
                masked.model.embed_tokens.weight[:, gone] = 0
                for index, layer in enumerate(masked.model.layers):
                    for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                        writer.weight[gone] = 0
                        if writer.bias is not None:
                            writer.bias[gone] = 0
                    lost = sorted(
                        set(range(28)) - set(kept.intermediate[index]))
                    layer.mlp.down_proj.weight[:, lost] = 0
                for key, module in masked.named_modules():
                    if key.endswith("norm") and not key.endswith(
                            ("q_norm", "k_norm")):
                        module.eps *= 11 / 20
                        module.weight *= (11 / 20) ** 0.5
            ids = torch.tensor([self.rows[1]])
            at = torch.arange(len(self.rows[1]))[None]
            with torch.no_grad():
                ours = pruned.logits(pruned(ids, at)[0])
                reference = masked.logits(masked(ids, at)[0])
            torch.testing.assert_close(
                ours, reference, rtol=1e-4, atol=1e-4, msg=name)

    def test_files_hold_slices_of_files(self):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            with tempfile.TemporaryDirectory() as name:
                self.folder = pathlib.Path(name)
                model = tiny_models.make(tiny_models.QWEN3, SEED)
                out = self.pruned(
                    model, dtype=dtype, hidden=0.45, intermediate=15,
                    max_shard_bytes=4000)
                stated = json.loads((out / "overfill.json").read_text())
                reader = TensorReader(out)
                self.assertGreater(len(reader.files), 2)
                h = stated["kept_hidden"]
                for at, i in enumerate(stated["kept_intermediate"]):
                    layer = model.model.layers[at]
                    attention, mlp = layer.self_attn, layer.mlp
                    for key, expected in (
                        ("self_attn.q_proj", attention.q_proj.weight[:, h]),
                        ("self_attn.k_proj", attention.k_proj.weight[:, h]),
                        ("self_attn.v_proj", attention.v_proj.weight[:, h]),
                        ("self_attn.o_proj", attention.o_proj.weight[h]),
                        ("self_attn.q_norm", attention.q_norm.weight),
                        ("self_attn.k_norm", attention.k_norm.weight),
                        ("mlp.gate_proj", mlp.gate_proj.weight[i][:, h]),
                        ("mlp.up_proj", mlp.up_proj.weight[i][:, h]),
                        ("mlp.down_proj", mlp.down_proj.weight[h][:, i]),
                        ("input_layernorm", layer.input_layernorm.weight[h]),
                        ("post_attention_layernorm",
                         layer.post_attention_layernorm.weight[h]),
                    ):
                        self.assertTrue(torch.equal(
                            reader.read(f"model.layers.{at}.{key}.weight",
                                        None), expected.to(dtype)), key)
                for key, expected in (
                    ("model.embed_tokens",
                     model.model.embed_tokens.weight[:, h]),
                    ("model.norm", model.model.norm.weight[h]),
                    ("lm_head", model.lm_head.weight[:, h]),
                ):
                    self.assertTrue(torch.equal(
                        reader.read(key + ".weight", None),
                        expected.to(dtype)), key)
                self.assertEqual(len(reader.names()), 3 * 11 + 3)

    def test_in_memory_and_on_disk_are_one(self):
        for name, config in tiny_models.ALL.items():
            model = tiny_models.rounded(tiny_models.make(config, SEED))
            tiny_models.save(self.folder / name, model)
            kept = prune.prune_checkpoint(
                self.folder / name, self.folder / f"{name}.out", self.rows,
                prune.Options(hidden=0.3, intermediate=0.6))
            stored, _ = checkpoint.load_checkpoint(
                self.folder / f"{name}.out")
            cut = prune.cut(model, kept)
            self.assertEqual(stored.config, cut.config)
            for key, tensor in cut.state_dict().items():
                self.assertTrue(torch.equal(tensor, stored.state_dict()[key]))

    def test_keeping_everything_keeps_the_logits(self):
        for name, config in tiny_models.ALL.items():
            model = tiny_models.rounded(tiny_models.make(config, SEED))
            tiny_models.save(self.folder / name, model)
            prune.prune_checkpoint(
                self.folder / name, self.folder / f"{name}.out", self.rows,
                prune.Options())
            stored, _ = checkpoint.load_checkpoint(self.folder / f"{name}.out")
            ids = torch.tensor([self.rows[2]])
            at = torch.arange(len(self.rows[2]))[None]
            with torch.no_grad():
                self.assertTrue(torch.equal(
                    stored.logits(stored(ids, at)[0]),
                    model.logits(model(ids, at)[0])), name)


class FolderTest(Base):
    def test_config_changes_in_its_widths_alone(self):
        model = tiny_models.make(tiny_models.LLAMA3, SEED)
        out = self.pruned(model, hidden=0.45, intermediate=0.45)
        before = json.loads((self.folder / "full/config.json").read_text())
        after = json.loads((out / "config.json").read_text())
        self.assertEqual(after, {
            **before, "hidden_size": 11, "intermediate_size": 15})
        self.assertEqual(after["head_dim"], 8)
        self.assertEqual(after["eos_token_id"], [49, 47])
        self.assertEqual(after["rope_scaling"]["rope_type"], "llama3")

    def test_what_was_derived_is_stated(self):
        config = tiny_models.ModelConfig(
            vocab_size=50, hidden_size=32, intermediate_size=28,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            head_dim=8)
        tiny_models.save(self.folder / "full", tiny_models.make(config, SEED),
                         head_dim=None, num_key_value_heads=None)
        out = self.pruned(None, hidden=0.45, intermediate=0.45)
        after, _ = checkpoint.read_config(out)
        self.assertEqual((after.head_dim, after.num_key_value_heads), (8, 4))

    def test_other_files_come_along(self):
        full = self.folder / "full"
        tiny_models.save(full, tiny_models.make(tiny_models.LLAMA, SEED))
        for name in ("tokenizer.json", "tokenizer_config.json",
                     "chat_template.jinja", "README.md", "pytorch_model.bin"):
            (full / name).write_text(f"{{}} {name}")
        out = self.pruned(None, hidden=11, intermediate=15)
        self.assertEqual(sorted(os.listdir(out)), [
            "chat_template.jinja", "config.json", "generation_config.json",
            "model.safetensors", "overfill.json", "tokenizer.json",
            "tokenizer_config.json"])
        for name in ("generation_config.json", "tokenizer.json"):
            self.assertEqual((out / name).read_bytes(),
                             (full / name).read_bytes())

    def test_the_manifest(self):
        full = self.folder / "full"
        tiny_models.save(full, tiny_models.make(tiny_models.LLAMA, SEED),
                         max_shard_bytes=9000)
        (full / "tokenizer.json").write_text("{}")
        out = self.pruned(None, hidden=11, intermediate=15)
        stated = json.loads((out / "overfill.json").read_text())
        self.assertEqual(
            {key: stated[key] for key in
             ("format", "version", "kv_map", "layer_map")},
            {"format": "overfill-pair", "version": 1, "kv_map": "identity",
             "layer_map": [0, 1, 2]})
        shards = sorted(path.name for path in full.glob("model-*"))
        self.assertGreater(len(shards), 1)
        self.assertEqual(set(stated["full"]["files"]), {
            "config.json", "tokenizer.json", "model.safetensors.index.json",
            *shards})
        self.assertEqual(set(stated["decode"]["files"]), {
            "config.json", "tokenizer.json", "model.safetensors"})
        for half, folder, width, inner in (("full", full, 20, 28),
                                           ("decode", out, 11, 15)):
            described = stated[half]
            self.assertEqual(described["name"], folder.name)
            self.assertEqual(
                (described["hidden_size"], described["intermediate_size"],
                 described["num_hidden_layers"]), (width, inner, 3))
            for name, digest in described["files"].items():
                self.assertEqual(digest, checkpoint.sha256_of(folder / name))

    def test_refreshing_the_manifest(self):
        out = self.pruned(tiny_models.make(tiny_models.LLAMA, SEED),
                          hidden=11, intermediate=15)
        before = manifest.read(out)
        model, raw = checkpoint.load_checkpoint(out)
        with torch.no_grad():
            model.model.norm.weight.add_(1)
        checkpoint.save_checkpoint(out, model, stated=raw)
        manifest.refresh(out)
        after = manifest.read(out)
        self.assertNotEqual(
            before["decode"]["files"].pop("model.safetensors"),
            after["decode"]["files"].pop("model.safetensors"))
        self.assertEqual(before, after)

    def test_depth(self):
        model = tiny_models.rounded(tiny_models.make(tiny_models.QWEN3, SEED))
        _, inner, influence = dense_model.importance(
            dense_model.numpy_state(model), model.config, self.rows)
        for strategy, layers in (
                ("first", [0, 1]), ("last", [1, 2]), ("firstlast", [0, 2]),
                ("importance", lead(influence, 2))):
            out = self.pruned(
                model, strategy, hidden=0.45, intermediate=0.45, depth=0.3,
                depth_strategy=strategy)
            self.assertEqual(json.loads((out / "kv_map.json").read_text()),
                             {"kind": "layers", "layers": layers})
            stated = manifest.read(out)
            self.assertEqual(stated["kv_map"], "layers")
            self.assertEqual(stated["layer_map"], layers)
            for chosen, at in zip(stated["kept_intermediate"], layers):
                assert_leads(self, chosen, inner[at], 15)
            pruned, raw = checkpoint.load_checkpoint(out)
            self.assertEqual(raw["num_hidden_layers"], 2)
            for at, source in enumerate(layers):
                self.assertTrue(torch.equal(
                    pruned.model.layers[at].self_attn.o_proj.weight,
                    model.model.layers[source].self_attn.o_proj.weight[
                        stated["kept_hidden"]]))
        with self.assertRaisesRegex(UserError, "two layers"):
            self.pruned(model, "one", depth=0.6)


if __name__ == "__main__":
    unittest.main()

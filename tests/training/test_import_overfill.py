import collections
import contextlib
import hashlib
import io
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch

from tests.training import pair_server
from training import checkpoint, import_overfill, safetensors_file
from training.errors import UserError
from training.model import Llama, ModelConfig

FULL = ModelConfig(
    vocab_size=40, hidden_size=32, intermediate_size=36, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8)
KV_DIM = 16
TOKENIZER = pathlib.Path("models/demo/full")


def bf16_state(config: ModelConfig):
    state = Llama(config).state_dict()
    return {name: torch.randn(tensor.shape).to(torch.bfloat16)
            for name, tensor in state.items()}


def with_changes(config: ModelConfig, **changes) -> ModelConfig:
    return ModelConfig(**{**config.__dict__, **changes})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


class ImportCase(unittest.TestCase):
    def setUp(self) -> None:
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        torch.manual_seed(seed)
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.root = pathlib.Path(made.name)
        self.full = self.root / "base"
        self.out = self.root / "pair"
        self.state_file = self.root / "pytorch_model.bin"

    def make(self, config: ModelConfig = FULL, **student_changes):
        """The full model's folder, its tensors and those of a student."""
        changes = {"hidden_size": 13, "intermediate_size": 19,
                   **student_changes}
        teacher = bf16_state(config)
        self.full.mkdir()
        checkpoint.write_json(self.full / "config.json", {
            **checkpoint.hf_config(config, 1, 2), "head_dim": None,
            "num_key_value_heads": 2, "kept": "as it was"})
        (self.full / "tokenizer.json").write_bytes(
            (TOKENIZER / "tokenizer.json").read_bytes())
        safetensors_file.write_tensors(
            self.full, {name: safetensors_file.Spec(tuple(tensor.shape))
                        for name, tensor in teacher.items()},
            teacher.__getitem__)
        return teacher, bf16_state(with_changes(config, **changes))

    def joined(self, teacher, student, tied: bool = True):
        state = collections.OrderedDict()
        for prefix, tensors in (("teacher", teacher), ("student", student)):
            for name, tensor in tensors.items():
                state[f"{prefix}.{name}"] = tensor
            if tied:  # as state_dict() has it: the same memory
                state[f"{prefix}.lm_head.weight"] = tensors[
                    "model.embed_tokens.weight"]
        return state

    def run_import(self, state=None, layers=None):
        if state is not None:
            torch.save(state, self.state_file)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            import_overfill.import_state(self.state_file, self.full, self.out,
                                         layers)
        self.assertIn("layers 4 -> ", said.getvalue())

    def assert_model(self, name: str, tensors) -> None:
        reader = safetensors_file.TensorReader(self.out / name)
        self.assertEqual(set(reader.names()), set(tensors))
        for tensor_name, tensor in tensors.items():
            self.assertEqual(bits(reader.read(tensor_name, None)),
                             bits(tensor), tensor_name)

    def manifest(self):
        return json.loads((self.out / "decode/overfill.json").read_text())


class PairTest(ImportCase):
    def test_an_identity_pair(self):
        teacher, student = self.make()
        self.run_import(self.joined(teacher, student))
        self.assert_model("full", teacher)
        self.assert_model("decode", student)
        config = json.loads((self.out / "decode/config.json").read_text())
        self.assertEqual(
            [config[key] for key in ("hidden_size", "intermediate_size",
                                     "head_dim", "kept", "torch_dtype")],
            [13, 19, 8, "as it was", "bfloat16"])
        self.assertFalse((self.out / "decode/kv_map.json").exists())
        self.assertEqual(sorted(p.name for p in self.root.iterdir()),
                         ["base", "pair", "pytorch_model.bin"])
        # It is a model that runs.
        model, _ = checkpoint.load_checkpoint(self.out / "decode")
        ids = torch.tensor([[1, 2, 3]])
        positions = torch.arange(3)[None]
        mask = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
        hidden, _ = model(ids, positions, None, mask)
        self.assertEqual(hidden.shape, (1, 3, 13))

    def test_the_manifest(self):
        teacher, student = self.make()
        self.run_import(self.joined(teacher, student))
        stated = self.manifest()
        self.assertEqual(stated["kv_map"], "identity")
        self.assertEqual(stated["layer_map"], [0, 1, 2, 3])
        self.assertIsNone(stated["kept_hidden"])
        self.assertIsNone(stated["kept_intermediate"])
        for half in ("full", "decode"):
            files = stated[half]["files"]
            self.assertEqual(set(files), {"config.json", "tokenizer.json",
                                          "model.safetensors"})
            for name, digest in files.items():
                data = (self.out / half / name).read_bytes()
                self.assertEqual(digest, hashlib.sha256(data).hexdigest())
        self.assertEqual(stated["full"]["hidden_size"], 32)
        self.assertEqual(stated["decode"]["hidden_size"], 13)

    def test_names_that_wrappers_lengthen(self):
        teacher, student = self.make()
        state = {}
        for name, tensor in self.joined(teacher, student).items():
            if name.startswith("teacher"):
                state[f"module.{name}"] = tensor
            else:
                inner = name.replace("student.", "student._orig_mod.")
                state[f"_orig_mod.{inner}"] = tensor
        state["student.model.layers.0.self_attn.rotary_emb.inv_freq"] = (
            torch.zeros(3))
        self.run_import({"module": state, "step": 7, "lr": 0.5})
        self.assert_model("full", teacher)
        self.assert_model("decode", student)

    def test_a_projection_maps_k_and_v_by_one_matrix(self):
        teacher, student = self.make(num_hidden_layers=3)
        state = self.joined(teacher, student)
        weights = [torch.randn(KV_DIM, KV_DIM).bfloat16() for _ in range(3)]
        biases = [torch.zeros(KV_DIM).bfloat16() for _ in range(3)]
        biases[1] = torch.randn(KV_DIM).bfloat16()
        for layer in range(3):
            state[f"embedding_proj.{layer}.weight"] = weights[layer]
            state[f"embedding_proj.{layer}.bias"] = biases[layer]
        self.run_import(state)
        kv_map = json.loads((self.out / "decode/kv_map.json").read_text())
        # 0, 1.5, 3: the paper's code rounds to even.
        self.assertEqual(kv_map, {"kind": "projection", "layers": [0, 2, 3],
                                  "file": "kv_map.safetensors"})
        reader = safetensors_file.TensorReader(
            self.out / "decode/kv_map.safetensors")
        maps = {name: reader.read(name) for name in reader.names()}
        want = {f"layers.{layer}.{half}": weights[layer].float()
                for layer in range(3) for half in "kv"}
        want.update({f"layers.1.{half}.bias": biases[1].float()
                     for half in "kv"})
        self.assertEqual(set(maps), set(want))
        for name, tensor in want.items():
            self.assertTrue(torch.equal(maps[name], tensor), name)
        self.assertEqual(self.manifest()["kv_map"], "projection")
        self.assertEqual(self.manifest()["layer_map"], [0, 2, 3])

    def test_fewer_layers_are_named(self):
        teacher, student = self.make(num_hidden_layers=2)
        state = self.joined(teacher, student)
        with self.assertRaisesRegex(UserError, "name them with --layers"):
            self.run_import(state)
        for given, want in (("firstlast", [0, 3]), ("first", [0, 1]),
                            ("last", [2, 3]), ("1,3", [1, 3])):
            with self.subTest(given):
                self.out = self.root / f"pair-{given}"
                self.run_import(state, given)
                self.assertEqual(
                    json.loads((self.out / "decode/kv_map.json").read_text()),
                    {"kind": "layers", "layers": want})
                self.assertEqual(self.manifest()["layer_map"], want)
        for wrong in ("3,1", "1", "0,4", "0,0", "middle", "", "-1,2"):
            with self.assertRaisesRegex(UserError, "--layers"):
                self.out = self.root / "wrong"
                self.run_import(state, wrong)

    def test_the_layers_of_the_paper(self):
        for count, num_layers in ((16, 28), (3, 4), (28, 28), (1, 5)):
            want = [int(round(x)) for x in
                    np.linspace(0, num_layers - 1, count)]
            got = import_overfill.equal_span(count, num_layers)
            self.assertEqual(got, want)
            self.assertEqual(got, sorted(set(got)))

    def test_without_the_teacher_the_full_folder_is_copied(self):
        teacher, student = self.make()
        alone = {f"student.{name}": t for name, t in student.items()}
        for state in (alone, student):  # a released decoder has no prefix
            self.out = self.root / f"pair-{len(next(iter(state)))}"
            self.run_import(state)
            self.assert_model("full", teacher)
            self.assert_model("decode", student)

    def test_safetensors_and_sharded_states(self):
        teacher, student = self.make(with_changes(
            FULL, tie_word_embeddings=False))
        state = self.joined(teacher, student, tied=False)
        folder = self.root / "state"
        folder.mkdir()
        self.state_file = folder
        names = list(state)
        half = len(names) // 2
        torch.save({n: state[n] for n in names[:half]}, folder / "a.bin")
        torch.save({n: state[n] for n in names[half:]}, folder / "b.bin")
        checkpoint.write_json(folder / "pytorch_model.bin.index.json", {
            "weight_map": {n: "a.bin" if i < half else "b.bin"
                           for i, n in enumerate(names)}})
        self.run_import()
        self.assert_model("decode", student)
        self.out = self.root / "again"
        safetensors_file.write_tensors(
            folder, {n: safetensors_file.Spec(tuple(t.shape))
                     for n, t in state.items()}, state.__getitem__,
            max_shard_bytes=4000)
        self.assertTrue((folder / "model.safetensors.index.json").exists())
        self.run_import()
        self.assert_model("full", teacher)
        self.assert_model("decode", student)


@unittest.skipUnless(pair_server.SERVER.exists(), "the server is not built")
class ServeTest(ImportCase):
    def serve(self, config: ModelConfig, layers=None, extra=None,
              **student_changes) -> str:
        teacher, student = self.make(config, **student_changes)
        self.run_import({**self.joined(teacher, student), **(extra or {})},
                        layers)
        kv_map = self.out / "decode/kv_map.json"
        return pair_server.load(
            self.out / "full", self.out / "decode",
            *([f"--kv_map={kv_map}"] if kv_map.exists() else []))

    def test_the_server_takes_each_kind(self):
        config = with_changes(FULL, vocab_size=2048)
        maps = {}
        for layer in range(3):
            maps[f"embedding_proj.{layer}.weight"] = torch.randn(16, 16)
            maps[f"embedding_proj.{layer}.bias"] = torch.zeros(16)
        for name, arguments in (
                ("identity", {}),
                ("layers", {"layers": "firstlast", "num_hidden_layers": 2}),
                ("projection", {"extra": maps, "num_hidden_layers": 3})):
            with self.subTest(name):
                self.full = self.root / f"{name}-full"
                self.out = self.root / name
                said = self.serve(config, **arguments)
                self.assertIn(" ready: ", said)
                self.assertNotIn("has no overfill.json", said)


class RefusalTest(ImportCase):
    def refused(self, state, said: str) -> None:
        """The program's: one line, exit code 2, nothing left behind."""
        if state is not None:
            torch.save(state, self.state_file)
        before = sorted(self.root.rglob("*"))
        done = subprocess.run(
            [sys.executable, "-B", "-m", "training.import_overfill",
             "--state", self.state_file, "--full", self.full, "--out",
             self.out], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertRegex(done.stderr, said)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(sorted(self.root.rglob("*")), before)

    def raises(self, state, said: str) -> None:
        torch.save(state, self.state_file)
        with self.assertRaisesRegex(UserError, said):
            import_overfill.import_state(self.state_file, self.full, self.out)
        self.assertFalse(self.out.exists())

    def test_by_the_program(self):
        teacher, student = self.make()
        state = self.joined(teacher, student)
        self.refused(None, "pytorch_model.bin: no such file")
        self.refused({**state, "extra.x": torch.zeros(1)},
                     "tensor 'extra.x': its prefix is none of")
        # Found while writing: what was written goes away.
        self.refused({**state, "teacher.model.norm.weight": torch.ones(7)},
                     "teacher: tensor 'model.norm.weight' is \\[7\\]")

    def test_states_that_do_not_fit(self):
        teacher, student = self.make()
        state = self.joined(teacher, student)
        norm = "student.model.norm.weight"
        embedding = "student.model.embed_tokens.weight"
        missing = dict(state)
        del missing[norm]
        bias = {f"embedding_proj.{n}.bias": torch.zeros(KV_DIM)
                for n in range(4)}
        maps = {f"embedding_proj.{n}.weight": torch.eye(KV_DIM)
                for n in range(4)}
        cases = [
            (missing, "student: tensor 'model.norm.weight' is missing"),
            ({**state, norm: torch.ones(24)}, "norm.weight' is \\[24\\]"),
            ({**state, norm: torch.ones(13).long()}, "int64 is not supp"),
            ({**state, embedding: torch.ones(5)}, "not a matrix"),
            ({**state, embedding: torch.ones(40, 33)}, "hidden_size is 33"),
            ({**state, "student.lm_head.weight": torch.ones(40, 13)},
             "differs from the embedding"),
            ({**state, "student.model.layers.5.x": torch.ones(1)},
             "its layers are not 0 to 4"),
            ({**state, "student.model.lora_A.weight": torch.ones(1)},
             "lora_A.weight': a LlamaForCausalLM"),
            ({**state, f"module.{norm}": torch.ones(13)}, "are one name"),
            ({f"teacher.{n}": t for n, t in teacher.items()},
             "no tensors of the student"),
            ({**state, **maps}, "embedding_proj: tensor '0.bias' is missing"),
            ({**state, **maps, **bias, "embedding_proj.4.bias": bias[
                "embedding_proj.0.bias"]}, "no such layer"),
            ({**state, **maps, **bias,
              "embedding_proj.1.weight": torch.ones(3, KV_DIM)},
             "tensor '1.weight' is \\[3, 16\\]"),
            ({**state, **maps, **bias, "embedding_proj.1.weight":
              torch.full((KV_DIM, KV_DIM), float("nan"))}, "not finite"),
        ]
        for bad, said in cases:
            with self.subTest(said):
                self.raises(bad, said)

    def test_folders_that_do_not_fit(self):
        teacher, student = self.make()
        state = self.joined(teacher, student)
        (self.full / "tokenizer.json").rename(self.root / "t")
        self.raises(state, "tokenizer.json: no such file")
        (self.root / "t").rename(self.full / "tokenizer.json")
        config = json.loads((self.full / "config.json").read_text())
        checkpoint.write_json(self.full / "config.json",
                              {**config, "architectures": ["GPT2LMHeadModel"]})
        self.raises(state, "config.json: architecture 'GPT2LMHeadModel'")
        self.out.mkdir()
        (self.out / "mine").touch()
        with self.assertRaisesRegex(UserError, "exists and is not empty"):
            import_overfill.import_state(self.state_file, self.full, self.out)


if __name__ == "__main__":
    unittest.main()

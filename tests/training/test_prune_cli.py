"""The command: calibration files, bad input, memory."""

import contextlib
import io
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import textwrap
import unittest

import numpy as np
import torch

from tests.training import tiny_models
from training import checkpoint, manifest, prune
from training.errors import UserError, main_of
from training.prune_calibration import read_rows
from training.tokenizer import train_tokenizer

SEED = random.randrange(1 << 30)
ROOT = pathlib.Path(__file__).resolve().parents[2]


class InFolder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)


class CalibrationTest(InFolder):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", flush=True)
        rng = random.Random(SEED)
        words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6)))
                 for _ in range(200)]
        cls.paragraphs = [" ".join(rng.choices(words, k=90)) + "."
                          for _ in range(30)]
        cls.tokenizer = train_tokenizer(cls.paragraphs, 320)

    def setUp(self):
        super().setUp()
        self.tokenizer.save(self.folder, 1024)

    def rows(self, name, content, num_rows=100, num_tokens=32, vocab=320):
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return read_rows(path, self.folder, vocab, num_rows, num_tokens)

    def refused(self, pattern, *args, **kwargs):
        with self.assertRaisesRegex(UserError, pattern) as caught:
            self.rows(*args, **kwargs)
        self.assertTrue(str(caught.exception).startswith(str(self.folder)))

    def test_text_is_cut_into_prompts(self):
        text = "\n\n".join(self.paragraphs)
        stream = self.tokenizer.encode(text)
        bos = self.tokenizer.bos_id
        expected = [[bos] + stream[at:at + 31]
                    for at in range(0, len(stream) - 30, 31)]
        self.assertGreater(len(expected), 20)
        self.assertEqual(self.rows("a.txt", text), expected[:100])
        self.assertEqual(self.rows("a.txt", text, num_rows=3), expected[:3])

    def test_a_long_text_is_read_in_pieces(self):
        text = "\n\n".join(self.paragraphs * 50) + "\n"
        self.assertGreater(len(text), 2 * (1 << 18))
        stream = self.tokenizer.encode(text)
        rows = self.rows("a.txt", text, num_rows=10 ** 6)
        got = [token for row in rows for token in row[1:]]
        self.assertEqual(got, stream[:len(got)])
        self.assertGreater(len(got), len(stream) - 31)

    def test_json_lines_are_documents(self):
        lines = "".join(json.dumps({"text": text, "id": 3}) + "\n"
                        for text in self.paragraphs)
        joined = "\n\n".join(self.paragraphs) + "\n\n"
        self.assertEqual(self.rows("a.jsonl", lines + "\n"),
                         self.rows("a.txt", joined))
        for line, pattern in (
                ("{", "not valid JSON"), ("[]", 'with a "text"'),
                ('{"text": 3}', 'with a "text"'), ("{}", 'with a "text"')):
            self.refused(rf"b\.jsonl:3: .*{pattern}", "b.jsonl",
                         '{"text": "a"}\n\n' + line + "\n")

    def test_short_text(self):
        for name in ("a.txt", "a.jsonl"):
            self.refused("is too short: a sample takes 32 tokens, it has 1$",
                         name, "")
        count = len(self.tokenizer.encode("abc abc")) + 1
        self.refused(f"takes 32 tokens, it has {count}$", "a.txt", "abc abc")
        self.assertEqual(len(self.rows("a.txt", "abc abc", 9, count)), 1)

    def test_text_that_is_none(self):
        self.refused(r"a\.txt:2: is not UTF-8", "a.txt", b"abc\n\xff\xfe\n")
        with self.assertRaisesRegex(UserError, "No such file"):
            read_rows(self.folder / "no.txt", self.folder, 320, 1, 9)
        with self.assertRaisesRegex(UserError, "Is a directory"):
            read_rows(self.folder, self.folder, 320, 1, 9)

    def test_ids(self):
        stream = np.arange(100) % 50
        table = stream.reshape(5, 20)
        for name, stored, expected in (
                ("a.npy", stream, stream[:96].reshape(3, 32)),
                ("b.npy", table, table)):
            np.save(self.folder / name, stored)
            content = (self.folder / name).read_bytes()
            size = expected.shape[1]
            self.assertEqual(self.rows(name, content, 100, size, 50),
                             expected.tolist())
            name = name.replace("npy", "json")
            self.assertEqual(
                self.rows(name, json.dumps(stored.tolist()), 100, size, 50),
                expected.tolist())
            self.assertEqual(
                self.rows(name, json.dumps(stored.tolist()), 2, size - 1, 50),
                [list(row)[:size - 1] for row in (
                    expected[:2] if stored.ndim == 2 else
                    stream[:62].reshape(2, 31))])

    def test_bad_ids(self):
        self.refused("sample takes 4 tokens, it has 3", "a.json", "[1, 2, 3]",
                     num_tokens=4)
        self.refused("sample takes 4 tokens, it has 2", "a.json",
                     "[[1, 2, 3, 4], [1, 2]]", num_tokens=4)
        self.refused("row 1 has ids from 1 to 50, the vocabulary 50", "a.json",
                     "[[1, 2], [1, 50]]", num_tokens=2, vocab=50)
        self.refused("from -1 to 2", "a.json", "[[-1, 2]]", num_tokens=2)
        for text in ('{"a": 1}', "[1.5, 2]", "[[1], 2]", "[true]", "3",
                     '["a"]', "[[[1]]]"):
            self.refused("must be a list of ids", "a.json", text, num_tokens=1)
        self.refused("it has 0", "a.json", "[]", num_tokens=1)
        good = io.BytesIO()
        np.save(good, np.arange(40).reshape(4, 10))
        whole = good.getvalue()
        for content in (b"", b"x", whole[:50], whole[:-8],
                        whole.replace(b"(4, 10)", b"(9**9,)")):
            self.refused(r"a\.npy: ", "a.npy", content, num_tokens=4)
        for array in (np.zeros((2, 2)), np.zeros((2, 2, 2), int),
                      np.array(["a"]), np.array(3), np.array([None])):
            np.save(self.folder / "a.npy", array, allow_pickle=True)
            self.refused(r"a\.npy: ", "a.npy",
                         (self.folder / "a.npy").read_bytes(), num_tokens=1)


class CommandTest(InFolder):
    def setUp(self):
        super().setUp()
        self.full, self.out = self.folder / "full", self.folder / "out"
        self.model = tiny_models.make(tiny_models.LLAMA, 1)
        tiny_models.save(self.full, self.model)
        self.ids = self.folder / "ids.json"
        self.ids.write_text(json.dumps(tiny_models.rows_of_ids(1, [8] * 4)))

    def run_main(self, **changes):
        """The exit code and what it says on stderr."""
        flags = {"model": self.full, "out": self.out, "hidden": "0.45",
                 "intermediate": "0.45", "calibration": self.ids,
                 "samples": 4, "sample-tokens": 8, **changes}
        arguments = [f"--{name}={value}" for name, value in flags.items()
                     if value is not None]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(
                io.StringIO()), self.assertRaises(SystemExit) as ended:
            main_of(lambda: prune.main(arguments))
        return ended.exception.code, errors.getvalue()

    def refused(self, pattern, **changes):
        before = sorted(os.listdir(self.folder))
        code, text = self.run_main(**changes)
        self.assertEqual(code, 2, text)
        self.assertRegex(text, rf"\Aerror: .*{pattern}.*\n\Z")
        self.assertEqual(text.count("\n"), 1, text)
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_a_good_run(self):
        code, text = self.run_main()
        self.assertEqual((code, text), (0, ""))
        self.assertEqual(manifest.read(self.out)["decode"]["name"], "out")
        config, _ = checkpoint.read_config(self.out)
        self.assertEqual((config.hidden_size, config.intermediate_size),
                         (11, 15))
        self.assertEqual(sorted(os.listdir(self.folder)),
                         ["full", "ids.json", "out"])

    def test_fewer_samples_than_asked_for_are_said(self):
        code, text = self.run_main(samples=9)
        self.assertEqual(code, 0)
        self.assertRegex(text, r"\Anote: .*ids\.json gives 4 of 9 samples\n\Z")

    def test_bad_flags(self):
        for flag in ("hidden", "intermediate"):
            for value in ("1.0", "-0.1", "1.5", "nan", "inf", "x"):
                self.refused(rf"--{flag} {value}: must be a ratio in \[0, 1\)",
                             **{flag: value})
            self.refused(f"--{flag}: 99 would keep 99 of", **{flag: "99"})
            self.refused(f"--{flag}: 0.99 would keep 0 of", **{flag: "0.99"})
            self.refused(f"required: --{flag}", **{flag: None})
        for value in ("1", "nan", "-1", "2"):
            self.refused(rf"--depth {value}: must be a ratio", depth=value)
        self.refused("depth-strategy", **{"depth-strategy": "middle"})
        self.refused("--samples must be at least 1", samples=0)
        self.refused("--sample-tokens", **{"sample-tokens": "x"})
        self.refused("--seed must be", seed=1 << 63)
        self.refused("--calibration is needed", calibration=None)
        self.refused("--device tpu", device="tpu")
        self.refused("--spill .*is no directory", spill=self.folder / "no")
        if not torch.cuda.is_available():
            self.refused("--device cuda: there is none", device="cuda")

    def test_bad_output(self):
        self.out.mkdir()
        (self.out / "file").write_text("mine")
        self.refused("out: exists and is not empty")
        self.assertEqual((self.out / "file").read_text(), "mine")
        self.refused("ids.json: exists and is no directory", out=self.ids)
        self.refused("full: exists and is not empty", out=self.full)

    def test_bad_models(self):
        self.refused("none: is no directory", model=self.folder / "none")
        raw = checkpoint.read_json(self.full / "config.json")
        for changes, pattern in (
                ({"architectures": ["OPTForCausalLM"]},
                 r"config\.json: architecture 'OPTForCausalLM' is not supp"),
                ({"hidden_size": 24}, r"asks for \[50, 24\]"),
                ({"num_hidden_layers": 4}, "layers.3.* is missing"),
                ({"num_hidden_layers": 2}, "layers.2.*no such one"),
                ({"tie_word_embeddings": False}, "lm_head.weight' is miss")):
            checkpoint.write_json(
                self.full / "config.json", {**raw, **changes})
            self.refused(pattern)
        checkpoint.write_json(self.full / "config.json", raw)
        weights = self.full / "model.safetensors"
        whole = weights.read_bytes()
        for content in (whole[:-1], whole[:100], whole[:4], b""):
            weights.write_bytes(content)
            self.refused(r"model\.safetensors: .*truncated")
        weights.write_bytes(struct.pack("<Q", 2) + b"{}")
        self.refused("is missing")

    def test_weights_that_are_no_numbers(self):
        with torch.no_grad():
            self.model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
        tiny_models.save(self.full, self.model)
        self.refused("activations are not finite")

    def test_a_missing_tokenizer_and_short_text(self):
        text = self.folder / "text.txt"
        text.write_text("short")
        self.refused(r"tokenizer\.json", calibration=text)
        ids = self.folder / "short.json"
        ids.write_text("[1, 2, 3]")
        self.refused(r"short\.json: is too short: a sample takes 8 tokens, it "
                     "has 3", calibration=ids)

    def test_a_full_disk_leaves_nothing(self):
        code = textwrap.dedent(f"""
            import resource, signal, sys
            from training import prune
            from training.errors import main_of
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            main_of(lambda: prune.main([
                "--model={self.full}", "--out={self.out}", "--hidden=0",
                "--intermediate=0", "--importance=magnitude"]))""")
        done = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertRegex(done.stderr, r"\Aerror: .*File too large.*\n\Z")
        self.assertEqual(sorted(os.listdir(self.folder)), ["full", "ids.json"])

    def test_as_a_program(self):
        done = subprocess.run(
            [sys.executable, "-B", "-m", "training.prune", "--model",
             self.full, "--out", self.out, "--hidden", "1.2",
             "--intermediate", "0.45", "--calibration", self.ids],
            cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stderr, "error: --hidden 1.2: must be a ratio "
                         "in [0, 1) or a whole number of channels to keep\n")
        self.assertEqual(done.stdout, "")


class MemoryTest(InFolder):
    def test_one_layer_is_held_not_all(self):
        # 24 layers of 8.4 MB in bf16 and 16.8 MB in float32.
        config = tiny_models.ModelConfig(
            vocab_size=64, hidden_size=512, intermediate_size=2048,
            num_hidden_layers=24, num_attention_heads=8,
            num_key_value_heads=8, head_dim=64)
        shapes = checkpoint.expected_shapes(config)
        noise = torch.randn(512 * 2048).mul_(0.02).to(torch.bfloat16)
        full = self.folder / "full"
        full.mkdir()
        checkpoint.write_json(full / "config.json",
                              checkpoint.hf_config(config, 1, 2))
        checkpoint.write_tensors(
            full, {name: checkpoint.Spec(shape)
                   for name, shape in shapes.items()},
            lambda name: noise[:np.prod(shapes[name])].view(shapes[name]))
        layer = sum(4 * int(np.prod(shape)) for name, shape in shapes.items()
                    if name.startswith("model.layers.0."))
        whole = self.peak(full, "checkpoint.load_checkpoint(full)")
        pruning = self.peak(full, """prune.prune_checkpoint(
            full, full.with_name("out"), [[1, 2, 3, 4] * 8] * 4,
            prune.Options(hidden=0.45, intermediate=0.45))""")
        print(f"one layer {layer / 1e6:.1f} MB, all {24 * layer / 1e6:.1f} "
              f"MB; loaded {whole / 1e6:.1f} MB, pruned with "
              f"{pruning / 1e6:.1f} MB")
        self.assertGreater(whole, 24 * layer)
        self.assertGreater(pruning, layer)
        self.assertLess(pruning, 4 * layer)

    def peak(self, full, expression):
        """Of a fresh process, in bytes, beyond what importing takes."""
        code = textwrap.dedent("""
            import pathlib, re, sys, torch
            from training import checkpoint, prune
            def peak():  # getrusage would count the process that forked
                status = open("/proc/self/status").read()
                return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024
            x = torch.randn(64, 64) @ torch.randn(64, 64)
            before = peak()
            full = pathlib.Path(sys.argv[1])
            """) + expression + "\nprint(peak() - before)"
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, full], cwd=ROOT,
            capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.returncode, 0, done.stderr)
        return int(done.stdout)


if __name__ == "__main__":
    unittest.main()

"""The distil command, from files to files."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import torch

from training import (
    checkpoint, distil, distil_run, manifest, prune, trainer_metrics)
from training.errors import UserError
from training.model import Llama, ModelConfig, init_weights
from training.safetensors_file import TensorReader
from training.tokenizer import train_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = ("red", "green", "blue", "black", "white", "pink", "grey", "brown")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
FULL = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=128)


def write_model(folder, tokenizer, seed, **changes):
    model = Llama(ModelConfig(
        vocab_size=tokenizer.vocab_size, **{**FULL, **changes}))
    init_weights(model, seed)
    checkpoint.save_checkpoint(
        folder, model, tokenizer.bos_id, tokenizer.eos_id)
    tokenizer.save(folder, 128)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": TEMPLATE}))


def lines(count, seed):
    """Echoes: the answer is the prompt's two words."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        said = " ".join(rng.sample(WORDS, 2))
        made.append({"prompt": f"say {said}:", "answer": f" {said}."})
    return made


def chats(count, seed):
    one, two = lines(count, seed), lines(count, seed + 1)
    return [{"conversations": [
        {"from": "human", "value": a["prompt"]},
        {"from": "gpt", "value": a["answer"].strip()},
        {"from": "human", "value": b["prompt"]},
        {"from": "gpt", "value": b["answer"].strip()}]}
        for a, b in zip(one, two)]


class DistilTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.models = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.models)
        texts = [line["prompt"] + line["answer"] for line in lines(99, 0)]
        tokenizer = train_tokenizer(texts + ["user: assistant: "] * 9, 290)
        cls.tokenizer = tokenizer
        write_model(cls.models / "full", tokenizer, 1)
        prune.prune_checkpoint(
            cls.models / "full", cls.models / "decode",
            [tokenizer.encode(text) for text in texts],
            prune.Options(hidden=prune.parse_width("13", "hidden"),
                          intermediate=prune.parse_width("17", "inner")))

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.data = self.write_data(lines(80, 1))

    def write_data(self, made, name="data.jsonl"):
        path = self.folder / name
        path.write_text("".join(json.dumps(line) + "\n" for line in made))
        return path

    def flags(self, *more, out="out", **named):
        given = {"full": self.models / "full",
                 "decode": self.models / "decode", "data": self.data,
                 "out": self.folder / out, "lr": 1e-2, "batch_size": 8,
                 "micro_batch": 4, "sequence_tokens": 96, "epochs": 3,
                 "dtype": "float32", **named}
        return [*more] + [part for name, value in given.items()
                          for part in ("--" + name.replace("_", "-"),
                                       str(value))]

    def run_here(self, *more, **named):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = distil.main(self.flags(*more, **named))
        self.said = said.getvalue()
        self.assertEqual(code, 0, self.said)
        return self.folder / named.get("out", "out")

    def dev_losses(self, out):
        rows = trainer_metrics.read_rows(out / "metrics.csv")
        return [row["dev_loss"] for row in rows if "dev_loss" in row]

    def assert_learned(self, out, by=0.5):
        losses = self.dev_losses(out)
        self.assertLess(losses[-1], losses[0] - by)
        model, _ = checkpoint.load_checkpoint(out)
        start, _ = checkpoint.load_checkpoint(self.models / "decode")
        self.assertEqual(model.config, start.config)
        self.assertFalse(torch.equal(
            model.model.norm.weight, start.model.norm.weight))
        self.assertFalse((self.folder / "out.run").exists())

    def assert_refused(self, message, *more, **named):
        before = sorted(self.folder.rglob("*"))
        with self.assertRaisesRegex(UserError, message):
            self.run_here(*more, **named)
        self.assertEqual(sorted(self.folder.rglob("*")), before)

    def test_two_stage_learns_and_is_a_pair(self):
        out = self.run_here("--gradient-checkpointing", dev_share=0.2,
                            dev_every=10, loss="both")
        self.assert_learned(out)
        self.assertEqual(len(self.dev_losses(out)), 1 + 24 // 10 + 1)
        stated = manifest.read(out)
        self.assertEqual(stated["kept_hidden"],
                         manifest.read(self.models / "decode")["kept_hidden"])
        self.assertEqual(stated["decode"]["name"], "out")
        for name, digest in stated["decode"]["files"].items():
            self.assertEqual(checkpoint.sha256_of(out / name), digest)
        self.assertEqual(stated["full"]["files"]["model.safetensors"],
                         checkpoint.sha256_of(
                             self.models / "full/model.safetensors"))
        told = json.loads((out / "training.json").read_text())
        self.assertEqual(told["steps"], 24)
        self.assertEqual(told["last"]["dev_loss"], self.dev_losses(out)[-1])
        self.assertEqual(told["data"]["data"]["rows"], 80)
        self.assertTrue((out / "tokenizer_config.json").exists())

    def test_the_manifest_names_the_full_model_that_is_read(self):
        for name, changes in (("later", {}), ("wider", {"hidden_size": 40})):
            full = self.folder / name
            write_model(full, self.tokenizer, 9, **changes)
            out = self.run_here(full=full, max_steps=1, out=f"out-{name}")
            stated = manifest.read(out)
            self.assertEqual(stated["full"], manifest.describe(full))
            self.assertEqual(stated["kept_hidden"] is None, bool(changes))
            self.assertIsNotNone(stated["kept_intermediate"])
        alone = self.run_here(objective="single", loss="kl", max_steps=1,
                              full=full, out="alone")
        self.assertEqual(manifest.read(alone)["full"],
                         manifest.read(self.models / "decode")["full"])

    def test_single_stage_from_checkpoint_and_from_scratch(self):
        self.assert_learned(self.run_here(
            objective="single", dev_share=0.2))
        out = self.run_here(objective="single", init="random", dev_share=0.2,
                            out="scratch")
        self.assert_learned(out)
        self.assertFalse((out / manifest.FILE_NAME).exists())

    def test_chats_learn(self):
        self.data = self.write_data(chats(60, 3))
        dev = self.write_data(chats(10, 99), "dev.jsonl")
        out = self.run_here(dev_data=dev)
        self.assert_learned(out)
        self.assertIn("60 lines, 60 sequences, 120 answers", self.said)

    def test_projection_is_trained_and_written_for_the_server(self):
        out = self.run_here("--projection", dev_share=0.2)
        self.assert_learned(out)
        stated = json.loads((out / "kv_map.json").read_text())
        self.assertEqual(stated, {"kind": "projection", "layers": [0, 1, 2],
                                  "file": "kv_map.safetensors"})
        reader = TensorReader(out / "kv_map.safetensors")
        self.assertEqual(set(reader.names()), {
            f"layers.{l}.{half}" for l in range(3) for half in "kv"})
        moved = reader.read("layers.1.k")
        self.assertEqual(tuple(moved.shape), (16, 16))
        self.assertEqual(reader.dtype("layers.1.k"), torch.float32)
        self.assertGreater(float((moved - torch.eye(16)).abs().max()), 1e-3)
        self.assertEqual(manifest.read(out)["kv_map"], "projection")
        # And training can go on from there.
        again = self.run_here(decode=out, out="again", max_steps=2)
        self.assertTrue(torch.equal(
            TensorReader(again / "kv_map.safetensors").read("layers.1.k"),
            moved))

    def test_a_decode_model_of_fewer_layers(self):
        decode = self.folder / "deep"
        write_model(decode, self.tokenizer, 5, num_hidden_layers=2)
        self.assert_refused("num_hidden_layers is 3 and 2", decode=decode)
        (decode / "kv_map.json").write_text(
            '{"kind": "layers", "layers": [0, 2]}')
        out = self.run_here(decode=decode, max_steps=2)
        self.assertEqual(json.loads((out / "kv_map.json").read_text()),
                         {"kind": "layers", "layers": [0, 2]})

    def test_killed_and_resumed_is_the_uninterrupted_run(self):
        seed = random.randrange(10 ** 6)
        print(f"seed {seed}")
        rng = random.Random(seed)
        named = dict(dev_share=0.1, dev_every=7, save_every=4)
        whole = self.run_here(out="whole", **named)
        command = [sys.executable, "-B", "-m", "training.distil",
                   *self.flags(**named)]
        for end in (signal.SIGKILL, signal.SIGTERM, None):
            process = subprocess.Popen(
                command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"})
            metrics = self.folder / "out.run/metrics.csv"
            at = rng.randrange(5, 10) if end is signal.SIGKILL else (
                rng.randrange(11, 20))
            while end is not None and process.poll() is None and (
                    not metrics.exists()
                    or metrics.read_text().count("\n") < at):
                time.sleep(0.002)
            if end is not None:
                process.send_signal(end)
            _, errors = process.communicate(timeout=60)
            if end is signal.SIGTERM:
                self.assertEqual(process.returncode, 128 + 15, errors)
                self.assertIn("stopped after step", errors)
                self.assertFalse((self.folder / "out").exists())
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn("going on after step", errors)
        one, other = ([{**row, "seconds": 0} for row in
                       trainer_metrics.read_rows(folder / "metrics.csv")]
                      for folder in (whole, self.folder / "out"))
        self.assertEqual(one, other)
        for name in ("model.safetensors", "config.json"):
            self.assertEqual((whole / name).read_bytes(),
                             (self.folder / "out" / name).read_bytes())

    def test_an_unfinished_run_refuses_other_arguments(self):
        with mock.patch.object(distil_run, "_write_out",
                               side_effect=UserError("the disk is full")):
            with self.assertRaisesRegex(UserError, "disk is full"):
                self.run_here(max_steps=3)
        self.assert_refused("began with peak_lr 0.01, not 0.1", lr=0.1,
                            max_steps=3)
        self.assert_refused("began with loss ce, not kl", loss="kl",
                            max_steps=3)
        with open(self.data, "a") as file:
            file.write(json.dumps(lines(1, 7)[0]) + "\n")
        with self.assertRaisesRegex(UserError, "began with data tokens-"):
            self.run_here(max_steps=3)
        self.run_here(lr=0.1, max_steps=3, resume="never")

    def test_one_run_at_a_time(self):
        folder = self.folder / "out.run"
        folder.mkdir()
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.assert_refused("out.run: another process trains there")

    def test_two_processes_write_what_one_does(self):
        named = dict(max_steps=4, dev_share=0.1)
        one = self.run_here(out="one", **named)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [subprocess.Popen(
            [sys.executable, "-B", "-m", "training.distil",
             *self.flags(parallel="ddp", micro_batch=2, **named)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank),
                 "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port)}) for rank in range(2)]
        for process in processes:
            _, errors = process.communicate(timeout=100)
            self.assertEqual(process.returncode, 0, errors)
        for name in ("loss", "dev_loss"):
            alone, together = ([row.get(name, 0) for row in
                                trainer_metrics.read_rows(
                                    folder / "metrics.csv")]
                               for folder in (one, self.folder / "out"))
            for a, b in zip(alone, together):
                self.assertAlmostEqual(a, b, places=4)
            self.assertEqual(len(alone), len(together))

    def test_bad_flags_are_one_line(self):
        for message, named in (
                ("'nan' is no number", {"lr": "nan"}),
                ("'0' is no whole number", {"batch_size": 0}),
                ("from 0 to 0.99", {"dev_share": 1.5}),
                ("invalid choice", {"loss": "x"}),
                ("no multiple of --micro-batch 3", {"micro_batch": 3}),
                ("over max_position_embeddings 128",
                 {"sequence_tokens": 500}),
                ("must be started by torchrun", {"parallel": "ddp"}),
                ("from 1 to 1000000000", {"batch_size": "9" * 400}),
                ("--metrics .* lies in --out",
                 {"metrics": self.folder / "out/metrics.csv"}),
                ("exclude each other",
                 {"dev_share": 0.1, "dev_data": self.data}),
                ("full2: is no directory", {"full": self.folder / "full2"}),
                ("nodata: no such file", {"data": self.folder / "nodata"})):
            self.assert_refused(message, **named)
        self.assert_refused("--projection goes with", "--projection",
                            objective="single")
        (self.folder / "out").mkdir()
        (self.folder / "out/x").touch()
        self.assert_refused("out: exists and is not empty")

    def test_no_pair_is_named_by_files_and_field(self):
        for field, value in (("num_key_value_heads", 4), ("head_dim", 16),
                             ("rope_theta", 5e5), ("dtype", "float16")):
            decode = self.folder / f"decode-{field}"
            write_model(decode, self.tokenizer, 5, **{field: value})
            self.assert_refused(
                rf"full/config.json and .*{decode.name}/config.json: {field} "
                f"is .* and {value}", decode=decode)
        self.run_here("--projection", decode=self.folder / "decode-head_dim",
                      max_steps=1)

    def test_what_ends_an_answer_is_a_token(self):
        decode = self.folder / "decode"
        write_model(decode, self.tokenizer, 5)
        (decode / "generation_config.json").write_text(
            '{"eos_token_id": [999999999999]}')
        self.assert_refused("eos_token_id 999999999999 is not below",
                            decode=decode)

    def test_other_layers_are_told_to_the_manifest(self):
        decode, named = self.folder / "deep", self.folder / "map.json"
        prune.prune_checkpoint(
            self.models / "full", decode, [[1, 2, 3]],
            prune.Options(13, 17, depth=0.3, depth_strategy="firstlast"))
        self.assertEqual(manifest.read(decode)["layer_map"], [0, 2])
        named.write_text('{"kind": "layers", "layers": [1, 2]}')
        out = self.run_here(decode=decode, max_steps=1, kv_map=named)
        self.assertEqual(manifest.read(out)["layer_map"], [1, 2])
        stated = manifest.read(decode)
        (decode / "kv_map.json").unlink()
        for layers, message in (
                ("0,2", "layer_map must be a list"),
                (["a", 2], "layers must be a list of numbers"),
                ([2, 0], "layers must ascend")):
            checkpoint.write_json(decode / "overfill.json",
                                  {**stated, "layer_map": layers})
            self.assert_refused(f"overfill.json: {message}", decode=decode,
                                out="other")

    def test_the_program_says_one_line_and_leaves_nothing(self):
        self.data.write_text('{"prompt": "a", "answer": "b"}\n{"prompt"\n')
        before = sorted(self.folder.rglob("*"))
        done = subprocess.run(
            [sys.executable, "-B", "-m", "training.distil", *self.flags()],
            cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr,
                         r"^error: .*data.jsonl:2: not valid JSON.*\n$")
        self.assertEqual(sorted(self.folder.rglob("*")), before)


if __name__ == "__main__":
    unittest.main()

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import unittest

from tests.training import tiny_models
from training.errors import UserError
from training.model_config import hf_config, parse_config


class ConfigTest(unittest.TestCase):
    GOOD = hf_config(tiny_models.LLAMA, 48, 49)

    def test_what_is_written_is_what_is_read(self):
        for config in tiny_models.ALL.values():
            self.assertEqual(
                parse_config(hf_config(config, 48, 49), "x"),
                config)

    def test_llama_3_2_as_it_is_published(self):
        config = parse_config({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 3072, "intermediate_size": 8192,
            "max_position_embeddings": 131072, "mlp_bias": False,
            "num_attention_heads": 24, "num_hidden_layers": 28,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0,
                "low_freq_factor": 1.0, "rope_type": "llama3",
                "original_max_position_embeddings": 8192},
            "rope_theta": 500000.0, "tie_word_embeddings": True,
            "vocab_size": 128256}, "x")
        self.assertEqual(config.rope_scaling.factor, 32.0)
        self.assertEqual(config.head_dim, 128)

    def test_newer_files_state_rope_elsewhere(self):
        raw = dict(self.GOOD)
        del raw["rope_theta"], raw["rope_scaling"]
        raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
        self.assertEqual(parse_config(raw, "x"), tiny_models.LLAMA)

    def test_what_is_null_or_absent_says_nothing(self):
        raw = {**self.GOOD, "rope_scaling": {"rope_type": None, "type": None}}
        del raw["torch_dtype"]
        self.assertEqual(
            parse_config(raw, "x"),
            dataclasses.replace(tiny_models.LLAMA, dtype="float32"))
        self.assertEqual(
            parse_config({**raw, "dtype": "float16"}, "x").dtype, "float16")

    def test_refusals(self):
        for base, changes, pattern in self.bad_configs():
            with self.assertRaisesRegex(UserError, f"^x: .*{pattern}"):
                parse_config({**base, **changes}, "x")
        with self.assertRaisesRegex(UserError, "^x: the top level"):
            parse_config([], "x")

    def bad_configs(self):
        qwen3 = hf_config(tiny_models.QWEN3, 48, 49)
        mistral = hf_config(tiny_models.MISTRAL, 48, 49)
        llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                  "high_freq_factor": 1.0,
                  "original_max_position_embeddings": 64}
        return (
            (self.GOOD, {"architectures": ["GPT2LMHeadModel"]},
             "architecture 'GPT2LMHeadModel' is not supported"),
            (self.GOOD, {"architectures": None}, "list of one name"),
            (self.GOOD, {"model_type": "qwen2"}, "does not fit"),
            (self.GOOD, {"num_experts": 8}, "num_experts is not supported"),
            (self.GOOD, {"hidden_act": "gelu"}, "only silu"),
            (self.GOOD, {"hidden_size": None}, "hidden_size is absent"),
            (self.GOOD, {"hidden_size": True}, "hidden_size must be"),
            (self.GOOD, {"hidden_size": "20"}, "hidden_size must be"),
            (self.GOOD, {"hidden_size": 1 << 40}, "hidden_size must be"),
            (self.GOOD, {"num_hidden_layers": 0}, "num_hidden_layers must"),
            (self.GOOD, {"num_key_value_heads": 3}, "is not a multiple"),
            (self.GOOD, {"head_dim": 12}, "not a multiple of 8"),
            (self.GOOD, {"head_dim": None, "hidden_size": 21}, "head_dim is"),
            (qwen3, {"head_dim": None}, "head_dim is absent, and Qwen3"),
            (self.GOOD, {"rms_norm_eps": 0}, "rms_norm_eps"),
            (self.GOOD, {"rms_norm_eps": 10 ** 400}, "rms_norm_eps"),
            (self.GOOD, {"tie_word_embeddings": 1}, "tie_word_embeddings"),
            (self.GOOD, {"rope_theta": None}, "rope_theta is absent"),
            (self.GOOD, {"rope_theta": 0.5}, "rope_theta must be"),
            (self.GOOD, {"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
            (self.GOOD, {"rope_scaling": {"rope_type": ["yarn"]}}, "yarn"),
            (self.GOOD, {"rope_scaling": {"rope_type": "linear",
                                          "factor": 2.0}}, "'linear'"),
            (self.GOOD, {"rope_scaling": {"rope_type": "default",
                                          "type": "llama3"}}, "type differ"),
            (self.GOOD, {"rope_scaling": {"factor": 2.0}}, "has factor"),
            (self.GOOD, {"rope_scaling": {"beta_slow": 1.0}}, "has beta_slow"),
            (self.GOOD, {"rope_parameters": {"full_attention": {}}},
             "per kind of layer"),
            (self.GOOD, {"torch_dtype": "int8"}, "dtype 'int8'"),
            (self.GOOD, {"torch_dtype": ["bfloat16"]}, "dtype .* is not supp"),
            (self.GOOD, {"dtype": "float16"}, "dtype and torch_dtype differ"),
            (self.GOOD, {"rope_scaling": llama3}, "must exceed"),
            (self.GOOD, {"rope_parameters": {"rope_theta": 7.0}}, "twice"),
            (self.GOOD, {"partial_rotary_factor": 0.5}, "partial rotary"),
            (mistral, {"sliding_window": 128}, "sliding_window 128"),
            (mistral, {"attention_bias": True}, "Mistral has none"),
            (qwen3, {"use_sliding_window": True}, "sliding windows"),
            (qwen3, {"mlp_bias": True}, "only Llama"),
            (qwen3, {"layer_types": ["sliding_attention"] * 3}, "layer_types"))


class MainTest(unittest.TestCase):
    def test_a_sigterm_leaves_nothing_half_written(self):
        with tempfile.TemporaryDirectory() as folder:
            program = subprocess.Popen(
                [sys.executable, "-c", "import pathlib, sys, time\n"
                 "from training import checkpoint, errors\n"
                 "def f():\n  with checkpoint.new_folder(\n"
                 "      pathlib.Path(sys.argv[1])) as partial:\n"
                 "    print(partial, flush=True)\n    time.sleep(60)\n"
                 "errors.main_of(f)", f"{folder}/out"],
                stdout=subprocess.PIPE, text=True)
            self.assertTrue(os.path.isdir(program.stdout.readline().strip()))
            program.terminate()
            program.communicate(timeout=30)
            self.assertEqual(program.returncode, 128 + signal.SIGTERM)
            self.assertEqual(os.listdir(folder), [])

    def test_errors_are_one_line_and_2(self):
        for body, expected in (
            ("raise UserError('a\\nb\\udc80: bad')",
             "error: a\\nb\\udc80: bad"),
            ("open('/no/such/file')", "error: /no/such/file: No such file"),
            ("raise MemoryError", "error: out of memory"),
            ("import torch; torch.empty(1 << 60)", "error: out of memory"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", "from training.errors import *\n"
                 f"def f():\n  {body}\nmain_of(f)"],
                capture_output=True, text=True)
            self.assertEqual(done.returncode, 2)
            self.assertTrue(done.stderr.startswith(expected), done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()

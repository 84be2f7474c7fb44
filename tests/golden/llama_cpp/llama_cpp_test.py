"""The reference, and the engine, beside llama.cpp.

usage: llama_cpp_test.py --runner=GOLDEN_RUNNER --modules=DIRECTORY

llama.cpp comes as the npm package node-llama-cpp; what package-lock.json pins
is installed into DIRECTORY at the first run. Where it cannot be, the program
says so and exits with 77, which ctest shows as skipped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
# pylint: disable=wrong-import-position
import checkpoints
import golden_case
import gguf
import reference
from golden_case import GoldenCase, LOGIT_TOLERANCE, relative_error

SKIPPED = 77
# The first of Node.js that node-llama-cpp takes.
MIN_NODE = 20


class LlamaCppTest(GoldenCase):
    """f32 everywhere: weights, KV and sums."""

    modules = None  # set by main

    def llama_cpp_logits(self, checkpoint, prompts):
        def path(name):
            return os.path.join(self.directory, name)

        gguf.write_gguf(checkpoint, path("model.gguf"))
        with open(path("prompts.json"), "w") as file:
            json.dump(prompts, file)
        result = subprocess.run(
            ["node", os.path.join(self.modules, "logits.mjs"),
             path("model.gguf"), path("prompts.json"), path("logits.json")],
            stderr=subprocess.PIPE, text=True, timeout=300, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(path("logits.json")) as file:
            return [torch.tensor(rows).double() for rows in json.load(file)]

    def check_shape(self, shape):
        checkpoint = self.checkpoint(shape)
        model = reference.Model(checkpoint)
        prompts = self.prompts(2)
        wants = self.llama_cpp_logits(checkpoint, prompts)
        run = {"path": "full", "max_tokens": 1, "sample_chunks": True,
               "schedule_seed": self.schedule(),
               "requests": golden_case.requests_of(prompts)}
        got = self.run_job("f32", [run], model.config.vocab_size,
                           full=checkpoint)[0].answers
        for prompt, want, answer in zip(prompts, wants, got):
            by_reference = relative_error(
                model.forward(prompt, model.new_cache()), want)
            by_engine = relative_error(answer.logits, want[answer.positions])
            self.report(f"max relative error of the reference "
                        f"{by_reference:.1e}, of the engine {by_engine:.1e}")
            self.assertLessEqual(by_reference, LOGIT_TOLERANCE["f32"])
            self.assertLessEqual(by_engine, LOGIT_TOLERANCE["f32"])
            # Another prompt's logits are none of these.
            self.assertGreater(relative_error(want.roll(1, 0), want),
                               LOGIT_TOLERANCE["f32"])

    def test_llama_tied_llama3_rope(self):
        self.check_shape(
            checkpoints.golden_shapes(self.rng)["llama_tied_llama3_rope"])

    def test_llama_untied_biases(self):
        self.check_shape(
            checkpoints.golden_shapes(self.rng)["llama_untied_biases"])

    def test_llama_3b_pruned_width(self):
        self.check_shape(
            checkpoints.golden_shapes(self.rng)["llama_3b_pruned_width"])

    def test_qwen2(self):
        shape = checkpoints.golden_shapes(self.rng)["qwen2"]
        # llama.cpp's Qwen2 knows no head_dim of its own.
        self.check_shape(shape.changed(hidden=shape.heads * shape.head_dim))

    def test_qwen3(self):
        self.check_shape(checkpoints.golden_shapes(self.rng)["qwen3"])


def install(directory):
    """None, or why node-llama-cpp cannot be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed"
    version = subprocess.run(["node", "--version"], stdout=subprocess.PIPE,
                             text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < MIN_NODE:
        return f"Node.js {MIN_NODE} or later is needed, {version.strip()} found"
    os.makedirs(directory, exist_ok=True)
    for name in [".npmrc", "package.json", "package-lock.json", "logits.mjs"]:
        shutil.copy(os.path.join(HERE, name), directory)
    # Not `npm ci`: it wants the packages of all other platforms in the lock.
    result = subprocess.run(
        ["npm", "install", "--omit=optional", "--ignore-scripts", "--no-audit",
         "--no-fund"], cwd=directory, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=500, check=False)
    if result.returncode != 0:
        return f"npm install failed:\n{result.stdout}"
    return None


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--modules", required=True)
    options, rest = parser.parse_known_args()
    LlamaCppTest.modules = os.path.abspath(options.modules)
    problem = install(LlamaCppTest.modules)
    if problem is not None:
        banner = "*" * 70
        print(f"{banner}\nSKIPPED: nothing was compared with llama.cpp: "
              f"{problem}\n{banner}", file=sys.stderr)
        sys.exit(SKIPPED)
    sys.argv[1:] = rest
    golden_case.main()


if __name__ == "__main__":
    main()

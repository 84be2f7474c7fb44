"""Runs golden_runner on a job and reads back what it computed."""

import json
import os
import subprocess
import tempfile

import torch


class RunnerFailed(Exception):
    """golden_runner ended with an error; the message is its stderr."""


class Answer:
    """One request's outcome.

    `logits` has one row per position in `positions`: the row that follows the
    input at that position.
    """

    def __init__(self, raw, logits):
        self.tokens = raw["tokens"]
        self.positions = raw["positions"]
        first = raw["first_row"]
        self.logits = logits[first:first + len(self.positions)].double()


class Run:
    """One run's outcome: answers, and digests of the KV by request."""

    def __init__(self, raw, logits):
        self.answers = [Answer(r, logits) for r in raw["requests"]]
        self.prefilled = raw["prefilled"]  # KV as the full model left it
        self.decoded = raw["decoded"]  # and as the decode pool found it


def run_job(runner, job, vocab_size):
    """The runs of a job, in order; see golden_runner.cc for its members."""
    with tempfile.TemporaryDirectory() as directory:
        job = dict(job, output=os.path.join(directory, "out"))
        job_path = os.path.join(directory, "job.json")
        with open(job_path, "w") as file:
            json.dump(job, file)
        result = subprocess.run([runner, job_path], text=True, timeout=600,
                                stderr=subprocess.PIPE, check=False)
        if result.returncode != 0:
            raise RunnerFailed(f"exit {result.returncode}: {result.stderr}")
        with open(job["output"] + ".json") as file:
            raw = json.load(file)
        with open(job["output"] + ".f32", "rb") as file:
            data = bytearray(file.read())
    if data:
        logits = torch.frombuffer(data, dtype=torch.float32)
        logits = logits.reshape(-1, vocab_size)
    else:
        logits = torch.zeros(0, vocab_size)
    return [Run(run, logits) for run in raw["runs"]]

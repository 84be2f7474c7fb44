"""The bundled pair's distillation: over scenes and facts of random tokens."""

from __future__ import annotations

import pathlib
import random
from typing import List, Optional

import numpy as np
import torch

from training import data
from training.model import Llama
from training.tokenizer import Tokenizer
from training.train import (
    BATCHES_PER_DRAW, Log, Progress, Schedule, State, apply_gradients,
    mix_of_level)
from training.two_stage import LossWeights, Student, TwoStage

# One step in so many is one of random facts: what is copied must not depend on
# the words being known ones.
STEPS_PER_FACTS = 3
FACT_TOKENS = 192
FACT_SUBJECTS = 4
LONGEST_FACT = 8


def distil(
    full: Llama, state: State, tokenizer: Tokenizer, seed: int,
    schedule: Schedule, level: int, path: Optional[pathlib.Path], log: Log,
    kl_weight: float = 1.0,
) -> None:
    """`state.model` is the pruned model; `full` does not change."""
    full.eval()
    progress = Progress(state, path, "distil", log)
    objective = TwoStage(full, LossWeights(1.0, kl_weight))
    student = Student(state.model)
    config = state.model.config
    batches: List[data.Batch] = []
    while state.step < schedule.num_steps:
        if state.step % STEPS_PER_FACTS == 0:
            batches.append(data.fact_batch(
                np.random.default_rng((seed, 4, state.step)),
                config.vocab_size, FACT_SUBJECTS, FACT_TOKENS, LONGEST_FACT,
                config.max_position_embeddings))
        elif not batches:
            rng = random.Random(f"{seed} distil {state.step}")
            batches = data.scene_batches(
                tokenizer, mix_of_level(level, level), rng, BATCHES_PER_DRAW)
        batch = batches.pop()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sums = objective(student, batch)
        loss = sums.loss / sums.tokens
        share = float(sums.exact) / max(1.0, float(sums.answers))
        apply_gradients(state, loss, schedule.lr(state.step))
        state.accuracy += 0.05 * (share - state.accuracy)
        progress.step(float(loss), batch.ids.numel())

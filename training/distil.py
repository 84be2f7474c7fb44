"""Distils the pruned model on answers, with the full model doing the prefill.

As it is served: the full model reads the prompt and gives the answer's first
token; the pruned model takes that token as its first input, at position
prompt_len, and attends to the full model's keys and values of the prompt and
to its own of the answer so far. The full model is frozen.
"""

from __future__ import annotations

import pathlib
import random
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from training import data
from training.model import LayerKV, Llama, MASKED
from training.tokenizer import Tokenizer
from training.train import (
    BATCHES_PER_DRAW, Log, Progress, Schedule, State, apply_gradients,
    exact_share, mix_of_level)


# One step in so many is one of random facts: what is copied must not depend on
# the words being known ones.
STEPS_PER_FACTS = 3
FACT_TOKENS = 192
FACT_SUBJECTS = 4
LONGEST_FACT = 8


class DecodeRows(NamedTuple):
    """One row per answer: what the pruned model reads and must say."""

    source_rows: torch.Tensor  # [num_answers], the row whose KV is read
    prompt_lens: torch.Tensor  # [num_answers], tokens of that KV in sight
    ids: torch.Tensor          # [num_answers, num_steps], from token 0 on
    positions: torch.Tensor    # [num_answers, num_steps]
    targets: torch.Tensor      # [num_answers, num_steps], IGNORED as padding
    teacher_at: torch.Tensor   # [num_answers, num_steps], where in the full
                               # model's row the same prediction is made


def decode_rows(batch: data.Batch) -> DecodeRows:
    """Answers of one token have nothing to decode and give no row."""
    spans = [span for span in batch.spans if span.length > 1]
    num_steps = max(span.length for span in spans) - 1
    shape = (len(spans), num_steps)
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, data.IGNORED)
    teacher_at = torch.zeros(shape, dtype=torch.long)
    for index, span in enumerate(spans):
        count = span.length - 1
        at = torch.arange(span.start, span.start + count)
        ids[index, :count] = batch.ids[span.row, at]
        positions[index, :count] = batch.positions[span.row, at]
        targets[index, :count] = batch.ids[span.row, at + 1]
        teacher_at[index, :count] = at
    return DecodeRows(
        torch.tensor([span.row for span in spans]),
        torch.tensor([span.start for span in spans]),
        ids, positions, targets, teacher_at)


def decode_mask(
    prompt_lens: torch.Tensor, num_past: int, num_steps: int
) -> torch.Tensor:
    """[num_answers, 1, 1, num_steps, num_past + num_steps]."""
    past = torch.arange(num_past)[None, :] < prompt_lens[:, None]
    past = past[:, None, :].expand(-1, num_steps, -1)
    own = torch.ones(num_steps, num_steps, dtype=torch.bool).tril()
    own = own[None].expand(len(prompt_lens), -1, -1)
    seen = torch.cat([past, own], dim=2)[:, None, None]
    return torch.where(seen, 0.0, MASKED)


def run_pruned(
    pruned: Llama, rows: DecodeRows, full_kv: List[LayerKV]
) -> torch.Tensor:
    """The pruned model's hidden states, [num_answers, num_steps, hidden]."""
    past = [(k[rows.source_rows], v[rows.source_rows]) for k, v in full_kv]
    mask = decode_mask(
        rows.prompt_lens, past[0][0].shape[2], rows.ids.shape[1])
    hidden, _ = pruned(rows.ids, rows.positions, past, mask)
    return hidden


def distillation_loss(
    full: Llama, pruned: Llama, batch: data.Batch, kl_weight: float
) -> Tuple[torch.Tensor, float]:
    """Cross entropy with the answer, plus KL from the full model."""
    rows = decode_rows(batch)
    wanted = rows.targets != data.IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            hidden, full_kv = full(batch.ids, batch.positions)
            source = rows.source_rows[:, None].expand_as(rows.ids)[wanted]
            teacher = full.logits(hidden[source, rows.teacher_at[wanted]])
        student = pruned.logits(run_pruned(pruned, rows, full_kv)[wanted])
    targets = rows.targets[wanted]
    log_probs = F.log_softmax(student.float(), dim=-1)
    teacher_probs = F.softmax(teacher.float(), dim=-1)
    entropy_gap = F.kl_div(log_probs, teacher_probs, reduction="batchmean")
    loss = F.nll_loss(log_probs, targets) + kl_weight * entropy_gap
    lengths = [int(count) for count in wanted.sum(1)]
    return loss, exact_share(student.argmax(-1) == targets, lengths)


def distil(
    full: Llama, state: State, tokenizer: Tokenizer, seed: int,
    schedule: Schedule, level: int, path: Optional[pathlib.Path], log: Log,
    kl_weight: float = 1.0,
) -> None:
    """`state.model` is the pruned model; `full` does not change."""
    full.eval()
    progress = Progress(state, path, "distil", log)
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
        loss, share = distillation_loss(full, state.model, batch, kl_weight)
        apply_gradients(state, loss, schedule.lr(state.step))
        state.accuracy += 0.05 * (share - state.accuracy)
        progress.step(float(loss), batch.ids.numel())

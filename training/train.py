"""Trains the full model: copying first, then the language of the world."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import random
import time
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from training import data, world
from training.demo.binding import binding_batch
from training.demo.induction import induction_batch
from training.model import Llama
from training.tokenizer import Tokenizer

Log = Callable[[str], None]
BATCHES_PER_DRAW = 8
# In the language stage, one step in so many is one of random tokens: they keep
# copying apart from what the words are, and every token of the vocabulary in
# use.
STEPS_PER_BINDING = 6


@dataclasses.dataclass
class State:
    """All that a run needs to go on where it stopped."""

    model: Llama
    optimizer: torch.optim.AdamW
    step: int = 0
    level: int = 2          # people or things in a passage, at most
    accuracy: float = 0.0   # running share of answers that are all right
    seconds: float = 0.0
    tokens: int = 0
    finished: bool = False  # the stage is over

    def save(self, path: pathlib.Path) -> None:
        content = {field.name: getattr(self, field.name)
                   for field in dataclasses.fields(self)
                   if field.name not in ("model", "optimizer")}
        content["model"] = self.model.state_dict()
        content["optimizer"] = self.optimizer.state_dict()
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(path)

    def load(self, path: pathlib.Path) -> None:
        content = torch.load(path)
        self.model.load_state_dict(content.pop("model"))
        self.optimizer.load_state_dict(content.pop("optimizer"))
        for name, value in content.items():
            setattr(self, name, value)


def new_state(model: Llama) -> State:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    return State(model, optimizer)


@dataclasses.dataclass(frozen=True)
class Schedule:
    num_steps: int
    peak_lr: float = 2e-3
    ramp_steps: int = 100
    decay_share: float = 0.3  # of the steps, at the end, down to a twentieth

    def lr(self, step: int) -> float:
        decay_steps = max(1, int(self.num_steps * self.decay_share))
        left = (self.num_steps - step) / decay_steps
        decay = 0.05 + 0.95 * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
        return self.peak_lr * min(1.0, (step + 1) / self.ramp_steps) * decay


def apply_gradients(state: State, loss: torch.Tensor, lr: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()


def target_loss(
    model: Llama, ids: torch.Tensor, positions: torch.Tensor,
    targets: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy over the positions that have a target, and which of
    these, row by row, the model has right."""
    wanted = targets != data.IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = model(ids, positions)
        logits = model.logits(hidden[wanted])
    loss = F.cross_entropy(logits.float(), targets[wanted])
    return loss, logits.argmax(-1) == targets[wanted]


def exact_share(right: torch.Tensor, lengths: Sequence[int]) -> float:
    """The share of answers all of whose tokens are right."""
    return sum(bool(part.all()) for part in right.split(list(lengths))
               ) / len(lengths)


class Progress:
    """Logs, keeps time, and writes the checkpoint now and then."""

    def __init__(
        self, state: State, path: Optional[pathlib.Path], name: str, log: Log
    ) -> None:
        self._state = state
        self._path = path
        self._name = name
        self._log = log
        self._last = time.monotonic()

    def step(self, loss: float, num_tokens: int) -> None:
        now = time.monotonic()
        state = self._state
        state.seconds += now - self._last
        state.tokens += num_tokens
        state.step += 1
        self._last = now
        if state.step % 25 == 0:
            self._log(f"{self._name} step {state.step} loss {loss:.3f} "
                      f"accuracy {state.accuracy:.3f} level {state.level} "
                      f"seconds {state.seconds:.0f}")
        if self._path is not None and state.step % 100 == 0:
            state.save(self._path)


def warm_up(
    state: State, seed: int, first_id: int, num_steps: int, stop_at: float,
    path: Optional[pathlib.Path], log: Log, num_rows: int = 64,
    num_tokens: int = 64,
) -> None:
    """Until copying works (`stop_at` of the targets right) or steps run out."""
    config = state.model.config
    progress = Progress(state, path, "warm-up", log)
    schedule = Schedule(num_steps, decay_share=0.0)
    while state.step < num_steps and state.accuracy < stop_at:
        rng = np.random.default_rng((seed, 1, state.step))
        ids, targets = induction_batch(
            rng, num_rows, num_tokens, config.vocab_size, first_id)
        offsets = rng.integers(
            0, config.max_position_embeddings - num_tokens, (num_rows, 1))
        positions = np.arange(num_tokens)[None, :] + offsets
        loss, right = target_loss(
            state.model, torch.from_numpy(ids), torch.from_numpy(positions),
            torch.from_numpy(targets))
        apply_gradients(state, loss, schedule.lr(state.step))
        share = float(right.float().mean())
        state.accuracy += 0.05 * (share - state.accuracy)
        progress.step(float(loss), ids.size)


def binding_step(
    state: State, rng: np.random.Generator, first_id: int, num_subjects: int,
    lr: float, tokens_per_batch: int,
) -> Tuple[float, float, int]:
    """One step on random facts: loss, share of values right, tokens."""
    config = state.model.config
    num_tokens = min(160, 48 + 14 * num_subjects)
    ids, targets, lengths = binding_batch(
        rng, tokens_per_batch // num_tokens, num_tokens, config.vocab_size,
        first_id, num_subjects)
    offsets = rng.integers(
        0, config.max_position_embeddings - num_tokens, (len(ids), 1))
    positions = np.arange(num_tokens)[None, :] + offsets
    loss, right = target_loss(
        state.model, torch.from_numpy(ids), torch.from_numpy(positions),
        torch.from_numpy(targets))
    apply_gradients(state, loss, lr)
    return float(loss), exact_share(right, lengths), ids.size


def learn_binding(
    state: State, seed: int, first_id: int, num_steps: int, max_subjects: int,
    path: Optional[pathlib.Path], log: Log, grow_at: float = 0.85,
    tokens_per_batch: int = 4096,
) -> None:
    """Until the values of `max_subjects` subjects are told apart, or steps run
    out. One more subject each time that `grow_at` of the values are right."""
    progress = Progress(state, path, "binding", log)
    schedule = Schedule(num_steps, decay_share=0.0)
    state.level = max(state.level, 2)
    grown_at = state.step
    while state.step < num_steps:
        loss, share, num_tokens = binding_step(
            state, np.random.default_rng((seed, 2, state.step)), first_id,
            state.level, schedule.lr(state.step), tokens_per_batch)
        state.accuracy += 0.05 * (share - state.accuracy)
        progress.step(loss, num_tokens)
        if state.step - grown_at >= 20 and state.accuracy > grow_at:
            if state.level == max_subjects:
                break
            state.level += 1
            grown_at = state.step


def mix_of_level(level: int, max_level: int) -> data.Mix:
    """The copying families first; the harder ones once passages have grown."""
    families: List[str] = (
        2 * list(world.COPY_FAMILIES) + 2 * list(world.LOOKUP_FAMILIES))
    if level >= max_level // 2:
        families += list(world.HARD_FAMILIES)
    return data.Mix(families=families, max_size=level)


def learn_language(
    state: State, tokenizer: Tokenizer, seed: int, schedule: Schedule,
    path: Optional[pathlib.Path], log: Log, max_level: int = 10,
    grow_at: float = 0.85,
) -> None:
    """Passages grow by one person or thing when the copied answers are right.

    The targets of a batch are row-major, and so are its spans."""
    progress = Progress(state, path, "language", log)
    batches: List[data.Batch] = []
    grown_at = state.step
    while state.step < schedule.num_steps:
        if state.step % STEPS_PER_BINDING == 0:
            loss, _, num_tokens = binding_step(
                state, np.random.default_rng((seed, 3, state.step)), 0,
                max_level, schedule.lr(state.step), tokens_per_batch=4096)
            progress.step(loss, num_tokens)
            continue
        if not batches:
            rng = random.Random(f"{seed} language {state.step}")
            batches = data.scene_batches(
                tokenizer, mix_of_level(state.level, max_level), rng,
                BATCHES_PER_DRAW)
        batch = batches.pop()
        loss, right = target_loss(
            state.model, batch.ids, batch.positions, batch.targets())
        apply_gradients(state, loss, schedule.lr(state.step))
        marks = [bool(part.all()) for part in
                 right.split([span.length for span in batch.spans])]
        # The harder families come later and stay hard; passages grow by what
        # is looked up and copied.
        copied = [mark for mark, span in zip(marks, batch.spans)
                  if span.family in world.COPY_FAMILIES]
        if copied:
            share = sum(copied) / len(copied)
            state.accuracy += 0.05 * (share - state.accuracy)
        progress.step(float(loss), batch.ids.numel())
        settled = state.step - grown_at >= 20
        if settled and state.accuracy > grow_at and state.level < max_level:
            state.level += 1
            grown_at = state.step
            batches = []

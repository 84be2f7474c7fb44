"""Batches as a function of the step: scenes, and facts of random tokens.

A row of scenes is `format_prompt(passage, question) + " " + answer + EOS`,
then more questions about the same passage in the same form. The first
question of a row is exactly what a user sends; the others make the same
passage teach several times. Only answers (EOS included) are learned.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from training.demo import world
from training.demo.binding import IGNORED, binding_batch
from training.demo.induction import induction_batch
from training.demo.scene import Scene, format_prompt
from training.errors import UserError
from training.tokenizer import Tokenizer
from training.two_stage import Answer, Batch

# A step's batch comes in parts, each of rows of nearly one length and so of
# few families; together they have short and long ones. Processes share them.
PARTS = 4
TOKENS_PER_PART = 1024
MAX_POSITIONS = 1024
MAX_QUESTIONS = 12
# Rows of this many parts are made together.
PARTS_PER_DRAW = 32


class Row(NamedTuple):
    ids: List[int]
    spans: List[Tuple[int, int]]  # start and length of each answer
    families: List[str]           # of each answer


def encode_scene(
    tokenizer: Tokenizer, scene: Scene, num_questions: int
) -> Row:
    row = Row([], [], [])
    for question in scene.questions[:num_questions]:
        if row.ids:
            row.ids.extend(tokenizer.encode(
                "\n" + format_prompt("", question.text)))
        else:
            prompt = format_prompt(scene.passage, question.text)
            row.ids.extend(tokenizer.encode(prompt, add_bos=True))
        answer = tokenizer.encode(" " + question.answer) + [tokenizer.eos_id]
        row.spans.append((len(row.ids), len(answer)))
        row.families.append(question.family)
        row.ids.extend(answer)
    return row


def collate(
    rows: Sequence[Row], pad_id: int, rng: random.Random
) -> Batch:
    """Pads on the right and shifts each row's positions by a random offset.

    Half of the rows keep offset 0, as served prompts have it.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    positions = torch.arange(width).repeat(len(rows), 1)
    spans: List[Answer] = []
    for index, row in enumerate(rows):
        ids[index, :len(row.ids)] = torch.tensor(row.ids)
        if rng.random() < 0.5:
            positions[index] += rng.randint(0, MAX_POSITIONS - width)
        spans += [Answer(index, *span) for span in row.spans]
    return Batch(ids, positions, spans)


def parts_per_process(world: int) -> int:
    """Micro-batches that each of `world` processes takes of a step."""
    if PARTS % world:
        raise UserError(f"{world} processes cannot share {PARTS} parts of a "
                        "batch; take 1, 2 or 4")
    return PARTS // world


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Passages grow: `first` people or things at most, one more every
    `steps_each` steps, up to `last`."""

    first: int = 8
    last: int = 8
    steps_each: int = 1

    def at(self, step: int) -> int:
        return min(self.last, self.first + step // self.steps_each)


class Scenes:
    """Scenes of all families alike, of the training split."""

    def __init__(
        self, tokenizer: Tokenizer, seed: str, sizes: Sizes = Sizes(),
        held_out: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._sizes = sizes
        self._held_out = held_out
        self._draw_of = functools.lru_cache(maxsize=2)(self._draw)

    def __call__(self, number: int) -> Batch:
        """A part; its number is all that it depends on."""
        draw, index = divmod(number, PARTS_PER_DRAW)
        return self._draw_of(draw)[index]

    def _rows(self, rng: random.Random, max_size: int) -> List[Row]:
        """Enough for a draw, the longest first."""
        rows: List[Row] = []
        num_tokens = 0
        while num_tokens < PARTS_PER_DRAW * TOKENS_PER_PART:
            # Half of the scenes are as large as they may be.
            size = max_size
            if rng.random() < 0.5:
                size = rng.randint(1, max_size)
            scene = world.make_scene(
                rng, world.draw_family(rng), size, self._held_out)
            row = encode_scene(self._tokenizer, scene, MAX_QUESTIONS)
            if 0 < len(row.ids) <= MAX_POSITIONS:  # some have no question
                rows.append(row)
                num_tokens += len(row.ids)
        return sorted(rows, key=lambda row: -len(row.ids))

    def _draw(self, draw: int) -> List[Batch]:
        rng = random.Random(f"{self._seed} {draw}")
        step = draw * PARTS_PER_DRAW // PARTS
        rows = self._rows(rng, self._sizes.at(step))
        total = sum(len(row.ids) for row in rows)
        groups: List[List[Row]] = [[] for _ in range(PARTS_PER_DRAW)]
        done = 0
        for row in rows:  # each group has its share of the tokens
            middle = done + len(row.ids) // 2
            groups[middle * PARTS_PER_DRAW // total].append(row)
            done += len(row.ids)
        parts = [collate(group, self._tokenizer.eos_id, rng)
                 for group in groups if group]
        while len(parts) < PARTS_PER_DRAW:  # a row may be longer than a part
            parts.append(parts[len(parts) % 7])
        rng.shuffle(parts)
        return parts


def _random_tokens(
    ids: np.ndarray, targets: np.ndarray, rng: np.random.Generator,
    lengths: Sequence[int],
) -> Batch:
    """`lengths`: of the runs of targets, in row-major order."""
    num_rows, num_tokens = ids.shape
    offsets = rng.integers(0, MAX_POSITIONS - num_tokens, (num_rows, 1))
    predicting = np.flatnonzero(targets != IGNORED)
    spans: List[Answer] = []
    at = 0
    for length in lengths:
        row, column = divmod(int(predicting[at]), num_tokens)
        spans.append(Answer(row, column + 1, length))
        at += length
    positions = np.arange(num_tokens)[None, :] + offsets
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), spans)


def fact_batch(
    seed: Sequence[int], vocab_size: int, num_subjects: int,
    longest_value: int = 3,
) -> Batch:
    """Random tokens as facts, told and told again: the values told again are
    the answers. What is copied must not depend on the words being known, and
    every token of the vocabulary comes up."""
    rng = np.random.default_rng(seed)
    num_tokens = min(160, 48 + 14 * num_subjects)
    ids, targets, lengths = binding_batch(
        rng, TOKENS_PER_PART // num_tokens, num_tokens, vocab_size, 0,
        num_subjects, longest_value)
    return _random_tokens(ids, targets, rng, lengths)


def copying_batch(seed: Sequence[int], vocab_size: int) -> Batch:
    """Random tokens in which segments come again."""
    rng = np.random.default_rng(seed)
    num_tokens = 64
    ids, targets = induction_batch(
        rng, TOKENS_PER_PART // num_tokens, num_tokens, vocab_size, 0)
    count = int((targets != IGNORED).sum())
    return _random_tokens(ids, targets, rng, [1] * count)

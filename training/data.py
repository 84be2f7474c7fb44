"""Batches of scenes: a passage, then several questions with their answers.

A training row is `format_prompt(passage, question) + " " + answer + EOS`,
then more questions about the same passage in the same form. The first
question of a row is exactly what a user sends; the others make the same
passage teach several times. Only answer tokens (EOS included) are learned.
"""

from __future__ import annotations

import dataclasses
import random
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from training import world
from training.demo.binding import IGNORED, binding_batch
from training.demo.scene import format_prompt
from training.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Span:
    """The tokens of one answer: ids[row, start:start + length]."""

    row: int
    start: int
    length: int
    family: str


@dataclasses.dataclass
class Batch:
    ids: torch.Tensor        # [num_rows, num_tokens], padded with EOS
    positions: torch.Tensor  # [num_rows, num_tokens]
    spans: List[Span]

    def targets(self) -> torch.Tensor:
        """[num_rows, num_tokens]: the next token where it is an answer's."""
        targets = torch.full_like(self.ids, IGNORED)
        for span in self.spans:
            end = span.start + span.length
            targets[span.row, span.start - 1:end - 1] = (
                self.ids[span.row, span.start:end])
        return targets


class Answer(NamedTuple):
    """The tokens of one answer in its row: ids[start:start + length]."""

    start: int
    length: int
    family: str


Row = Tuple[List[int], List[Answer]]


def encode_scene(
    tokenizer: Tokenizer, scene: world.Scene, num_questions: int
) -> Row:
    ids: List[int] = []
    answers: List[Answer] = []
    for question in scene.questions[:num_questions]:
        if ids:
            ids += tokenizer.encode(
                "\n" + format_prompt("", question.text))
        else:
            prompt = format_prompt(scene.passage, question.text)
            ids += tokenizer.encode(prompt, add_bos=True)
        answer = tokenizer.encode(" " + question.answer) + [tokenizer.eos_id]
        answers.append(Answer(len(ids), len(answer), question.family))
        ids += answer
    return ids, answers


@dataclasses.dataclass(frozen=True)
class Mix:
    """What a stretch of training draws its scenes from."""

    families: Sequence[str]
    max_size: int            # people or things in a passage, at most
    num_questions: int = 10
    tokens_per_batch: int = 4096
    max_positions: int = 1024


def scene_batches(
    tokenizer: Tokenizer, mix: Mix, rng: random.Random, num_batches: int
) -> List[Batch]:
    """About `num_batches` batches, each of rows of nearly one length."""
    rows: List[Row] = []
    num_tokens = 0
    while num_tokens < num_batches * mix.tokens_per_batch:
        # Half of the scenes are as large as they may be.
        size = mix.max_size
        if rng.random() < 0.5:
            size = rng.randint(1, mix.max_size)
        scene = world.make_scene(rng, rng.choice(mix.families), size, False)
        row = encode_scene(tokenizer, scene, mix.num_questions)
        if len(row[0]) <= mix.max_positions:
            rows.append(row)
            num_tokens += len(row[0])
    rows.sort(key=lambda row: len(row[0]))
    batches: List[Batch] = []
    while rows:
        longest = len(rows[-1][0])
        count = max(1, mix.tokens_per_batch // longest)
        batches.append(collate(tokenizer, rows[-count:], rng, mix.max_positions))
        del rows[-count:]
    rng.shuffle(batches)
    return batches


def collate(
    tokenizer: Tokenizer, rows: Sequence[Row], rng: random.Random,
    max_positions: int,
) -> Batch:
    """Pads on the right and shifts each row's positions by a random offset.

    Half of the rows keep offset 0, as served prompts have it.
    """
    width = max(len(ids) for ids, _ in rows)
    padded = torch.full((len(rows), width), tokenizer.eos_id)
    positions = torch.arange(width).repeat(len(rows), 1)
    spans: List[Span] = []
    for index, (ids, answers) in enumerate(rows):
        padded[index, :len(ids)] = torch.tensor(ids)
        if rng.random() < 0.5:
            positions[index] += rng.randint(0, max_positions - width)
        spans += [Span(index, *answer) for answer in answers]
    return Batch(padded, positions, spans)


def fact_batch(
    rng: np.random.Generator, vocab_size: int, num_subjects: int,
    num_tokens: int, longest_value: int, max_positions: int,
    tokens_per_batch: int = 4096,
) -> Batch:
    """Random tokens as facts, told and told again: the values told again are
    the answers. Every token of the vocabulary comes up."""
    ids, targets, lengths = binding_batch(
        rng, tokens_per_batch // num_tokens, num_tokens, vocab_size, 0,
        num_subjects, longest_value)
    offsets = rng.integers(0, max_positions - num_tokens, (len(ids), 1))
    predicting = np.flatnonzero(targets != IGNORED)
    spans: List[Span] = []
    at = 0
    for length in lengths:  # row by row, as `predicting` is
        row, column = divmod(int(predicting[at]), num_tokens)
        spans.append(Span(row, column + 1, length, "facts"))
        at += length
    return Batch(torch.from_numpy(ids),
                 torch.from_numpy(np.arange(num_tokens)[None, :] + offsets),
                 spans)

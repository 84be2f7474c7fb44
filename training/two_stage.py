"""The mathematics of a training step, two-stage or single-stage.

As it is served: the full model reads the prompt and gives the answer's first
token; the pruned model takes that token as its first input, at position
prompt_len, and attends to the full model's keys and values of exactly the
prompt and to its own of the answer so far. The full model is frozen. Losses
are of answer tokens only, and token 0 is never the pruned model's to predict.

A sequence may hold several answers: each sees what comes before it as its
prompt, earlier answers included, as the full model reads them in a chat.
"""

from __future__ import annotations

import dataclasses
from typing import (
    Callable, List, NamedTuple, Optional, Protocol, Sequence)

import torch
from torch import nn
import torch.nn.functional as F

from training.model import LayerKV, Llama, MASKED

IGNORED = -100


class Span(Protocol):
    """The tokens of one answer: ids[row, start:start + length]."""

    row: int
    start: int
    length: int


class Sequences(Protocol):
    """Token rows, padded on the right with any token."""

    ids: torch.Tensor        # [num_rows, num_tokens]
    positions: torch.Tensor  # [num_rows, num_tokens]
    spans: Sequence[Span]    # of one row: ascending, without overlap


class Answer(NamedTuple):
    row: int
    start: int
    length: int


@dataclasses.dataclass
class Batch:
    """Sequences as they are: see there."""

    ids: torch.Tensor
    positions: torch.Tensor
    spans: List[Answer]


class DecodeRows(NamedTuple):
    """What the pruned model reads and must say: a row per sequence, with the
    sequence's answers side by side, so that they share one copy of its KV.

    All are [num_rows, num_steps]."""

    ids: torch.Tensor        # of each answer, from token 0 to the last but one
    positions: torch.Tensor
    targets: torch.Tensor    # the token after each; IGNORED as padding
    teacher_at: torch.Tensor  # where in the full model's row that token is
                              # predicted
    sight: torch.Tensor      # how many tokens of the full model's KV are seen
    answers: torch.Tensor    # which of the batch's spans; -1 as padding

    def to(self, device: torch.device) -> "DecodeRows":
        return DecodeRows(*(tensor.to(device) for tensor in self))


def decode_rows(batch: Sequences) -> DecodeRows:
    """Answers of one token have nothing to decode and give no step."""
    num_rows = batch.ids.shape[0]
    used = [0] * num_rows
    for span in batch.spans:
        used[span.row] += max(0, span.length - 1)
    shape = (num_rows, max(used + [1]))
    rows = DecodeRows(
        ids=torch.zeros(shape, dtype=torch.long),
        positions=torch.zeros(shape, dtype=torch.long),
        targets=torch.full(shape, IGNORED),
        teacher_at=torch.zeros(shape, dtype=torch.long),
        sight=torch.zeros(shape, dtype=torch.long),
        answers=torch.full(shape, -1))
    ids, positions = batch.ids.cpu(), batch.positions.cpu()
    used = [0] * num_rows
    for index, span in enumerate(batch.spans):
        row, start, count = span.row, span.start, span.length - 1
        if count < 1:
            continue
        to = slice(used[row], used[row] + count)
        rows.ids[row, to] = ids[row, start:start + count]
        rows.positions[row, to] = positions[row, start:start + count]
        rows.targets[row, to] = ids[row, start + 1:start + 1 + count]
        rows.teacher_at[row, to] = torch.arange(start, start + count)
        rows.sight[row, to] = start
        rows.answers[row, to] = index
        used[row] += count
    return rows


def rows_mask(rows: DecodeRows, num_past: int) -> torch.Tensor:
    """[num_rows, 1, 1, num_steps, num_past + num_steps]: a step sees its own
    prompt, and its own answer up to itself."""
    device = rows.ids.device
    past = torch.arange(num_past, device=device) < rows.sight[:, :, None]
    num_steps = rows.ids.shape[1]
    own = torch.ones(
        num_steps, num_steps, dtype=torch.bool, device=device).tril()
    own = own & (rows.answers[:, :, None] == rows.answers[:, None, :])
    seen = torch.cat([past, own], dim=2)[:, None, None]
    return torch.where(seen, 0.0, MASKED)


# Makes the pruned model's view of the prompt from the full model's KV.
KvTransform = Callable[[List[LayerKV]], List[LayerKV]]


def run_pruned(
    pruned: Llama, rows: DecodeRows, full_kv: List[LayerKV],
    kv_transform: Optional[KvTransform] = None,
) -> torch.Tensor:
    """The pruned model's hidden states, [num_rows, num_steps, hidden]."""
    in_sight = int(rows.sight.max())
    past = [(k[:, :, :in_sight], v[:, :, :in_sight]) for k, v in full_kv]
    if kv_transform is not None:
        past = kv_transform(past)
    hidden, _ = pruned(
        rows.ids, rows.positions, past, rows_mask(rows, in_sight))
    return hidden


class Student(nn.Module):
    """What is trained: a model and, for a two-stage one, its map of the full
    model's KV. All parameters are used inside of one forward, as wrappers for
    several processes need it."""

    def __init__(
        self, model: Llama, kv_transform: Optional[nn.Module] = None
    ) -> None:
        super().__init__()
        self.model = model
        self.kv_transform = kv_transform

    def forward(
        self, rows: DecodeRows, full_kv: Optional[List[LayerKV]]
    ) -> torch.Tensor:
        """Logits of the steps that have a target, [num_targets, vocab_size].

        Without the full model's KV the rows are whole sequences, which the
        model reads alone."""
        if full_kv is None:
            hidden, _ = self.model(rows.ids, rows.positions)
        else:
            hidden = run_pruned(
                self.model, rows, full_kv, self.kv_transform)
        return self.model.logits(hidden[rows.targets != IGNORED])


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """loss = ce * cross entropy + kl * KL(full model || student).

    The KL is between distributions at `temperature`, times its square, so
    that its gradient keeps its size."""

    ce: float = 1.0
    kl: float = 0.0
    temperature: float = 1.0


class LossSums(NamedTuple):
    """Sums over the target tokens of a batch; `loss` alone has gradients."""

    loss: torch.Tensor
    ce: torch.Tensor
    kl: torch.Tensor
    tokens: torch.Tensor   # target tokens
    right: torch.Tensor    # of these, the student's first choice
    answers: torch.Tensor  # answers with a target
    exact: torch.Tensor    # of these, right in every token


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def loss_sums(
    student: torch.Tensor, teacher: Optional[torch.Tensor],
    targets: torch.Tensor, answers: torch.Tensor, weights: LossWeights,
) -> LossSums:
    """`student`, `teacher`: logits [num_targets, vocab_size]; `answers`: which
    answer each target belongs to. The KL is 0 without a teacher."""
    student = _wide(student)
    log_probs = F.log_softmax(student, dim=-1)
    ce = F.nll_loss(log_probs, targets, reduction="sum")
    loss = weights.ce * ce
    kl = torch.zeros_like(ce)
    if teacher is not None:
        warmth = weights.temperature
        if warmth != 1.0:
            log_probs = F.log_softmax(student / warmth, dim=-1)
        full_log_probs = F.log_softmax(_wide(teacher) / warmth, dim=-1)
        kl = warmth ** 2 * F.kl_div(
            log_probs, full_log_probs, reduction="sum", log_target=True)
        loss = loss + weights.kl * kl
    right = student.detach().argmax(-1) == targets
    marks = torch.zeros(
        2, int(answers.max()) + 1 if len(answers) else 0,
        device=targets.device)
    marks[0].index_add_(0, answers, torch.ones_like(right, dtype=marks.dtype))
    marks[1].index_add_(0, answers, (~right).to(marks.dtype))
    return LossSums(
        loss, ce.detach(), kl.detach(),
        tokens=torch.tensor(float(len(targets)), device=targets.device),
        right=right.sum(), answers=(marks[0] > 0).sum(),
        exact=((marks[0] > 0) & (marks[1] == 0)).sum())


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class TwoStage:
    """The objective of a pruned model behind the frozen full one."""

    def __init__(self, full: Llama, weights: LossWeights) -> None:
        self.full = full
        self.weights = weights

    def num_targets(self, batch: Sequences) -> int:
        return sum(max(0, span.length - 1) for span in batch.spans)

    def __call__(self, student: nn.Module, batch: Sequences) -> LossSums:
        device = _device_of(student)
        rows = decode_rows(batch)
        # The last answer's tokens matter only to its distribution.
        num_read = int(rows.sight.max())
        if self.weights.kl:
            num_read = max(num_read, int(rows.teacher_at.max()) + 1)
        num_read = max(1, num_read)
        rows = rows.to(device)
        wanted = rows.targets != IGNORED
        teacher = None
        with torch.no_grad():
            hidden, full_kv = self.full(
                batch.ids[:, :num_read].to(device),
                batch.positions[:, :num_read].to(device))
            if self.weights.kl:
                teacher = self.full.logits(_gather(hidden, rows, wanted))
        return loss_sums(
            student(rows, full_kv), teacher, rows.targets[wanted],
            rows.answers[wanted], self.weights)


class SingleStage:
    """Next-token prediction of the answers, token 0 included, by one model
    that reads the prompt itself; with a KL only where there is a full model.
    """

    def __init__(self, full: Optional[Llama], weights: LossWeights) -> None:
        if weights.kl and full is None:
            raise ValueError("a KL needs a full model")
        self.full = full
        self.weights = weights

    def num_targets(self, batch: Sequences) -> int:
        return sum(span.length for span in batch.spans)

    def __call__(self, student: nn.Module, batch: Sequences) -> LossSums:
        rows = sequence_rows(batch).to(_device_of(student))
        wanted = rows.targets != IGNORED
        teacher = None
        if self.weights.kl:
            with torch.no_grad():
                hidden, _ = self.full(rows.ids, rows.positions)
                teacher = self.full.logits(_gather(hidden, rows, wanted))
        return loss_sums(
            student(rows, None), teacher, rows.targets[wanted],
            rows.answers[wanted], self.weights)


def sequence_rows(batch: Sequences) -> DecodeRows:
    """Whole sequences, up to the last token that predicts something."""
    width = max([span.start + span.length - 1 for span in batch.spans] + [1])
    ids = batch.ids[:, :width]
    targets = torch.full_like(ids, IGNORED)
    answers = torch.full_like(ids, -1)
    for index, span in enumerate(batch.spans):
        end = span.start + span.length
        targets[span.row, span.start - 1:end - 1] = (
            batch.ids[span.row, span.start:end])
        answers[span.row, span.start - 1:end - 1] = index
    return DecodeRows(
        ids, batch.positions[:, :width], targets,
        torch.arange(width).expand_as(ids), torch.zeros_like(ids), answers)


def _gather(
    hidden: torch.Tensor, rows: DecodeRows, wanted: torch.Tensor
) -> torch.Tensor:
    row = torch.arange(len(wanted), device=wanted.device)[:, None]
    return hidden[row.expand_as(wanted)[wanted], rows.teacher_at[wanted]]

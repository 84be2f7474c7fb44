"""Which channels and layers stay: rules of counting and choosing.

A width is a ratio to remove, in [0, 1), of which int((1 - ratio) * n) channels
stay, or the number of channels to keep, a whole number from 1 on.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import List, Sequence, Union

import torch

from training.errors import UserError

# What is kept: the first layers; the last ones; the first one and the last
# ones; those that change their input most.
DEPTH_STRATEGIES = ("first", "last", "firstlast", "importance")

Width = Union[int, float]


@dataclasses.dataclass
class Importance:
    """Scores of the channels; the higher ones stay."""

    hidden: torch.Tensor              # [hidden_size]
    intermediate: List[torch.Tensor]  # per layer, [intermediate_size]


@dataclasses.dataclass(frozen=True)
class Kept:
    """Indices of the channels kept, ascending."""

    hidden: List[int]
    intermediate: List[List[int]]  # per layer of the decode model


def parse_width(text: str, flag: str) -> Width:
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) >= 1:
        return int(text)
    return parse_ratio(text, flag, " or a whole number of channels to keep")


def parse_ratio(text: str, flag: str, otherwise: str = "") -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UserError(f"{flag} {text}: must be a ratio in [0, 1){otherwise}")
    return value


def count_kept(width: Width, size: int, what: str) -> int:
    """In double precision, as it is written: int((1 - 0.9) * 10) is 0."""
    if isinstance(width, int):
        count = width
    else:
        if not 0 <= width < 1:
            raise UserError(f"{what}: the ratio {width} is not in [0, 1)")
        count = int((1 - width) * size)
    if not 1 <= count <= size:
        raise UserError(f"{what}: {width} would keep {count} of {size}")
    return count


def top(scores: torch.Tensor, count: int) -> List[int]:
    """Ascending indices of the highest scores; of equal ones, the first."""
    order = torch.sort(scores.double(), descending=True, stable=True).indices
    return sorted(order[:count].tolist())


def choose(importance: Importance, num_hidden: int, num_inner: int) -> Kept:
    for scores in (importance.hidden, *importance.intermediate):
        if not bool(torch.isfinite(scores).all()):
            raise UserError("the model's activations are not finite")
    return Kept(top(importance.hidden, num_hidden),
                [top(scores, num_inner) for scores in importance.intermediate])


def choose_layers(
    strategy: str, count: int, influence: Sequence[float]
) -> List[int]:
    """`influence`: of each layer of the full model; used by `importance`."""
    num_layers = len(influence)
    if strategy == "first":
        return list(range(count))
    if strategy == "last":
        return list(range(num_layers - count, num_layers))
    if strategy == "firstlast":
        return [0, *range(num_layers - count + 1, num_layers)]
    if strategy == "importance":
        return top(torch.tensor(influence, dtype=torch.float64), count)
    raise UserError(f"depth strategy {strategy!r} is unknown "
                    f"({', '.join(DEPTH_STRATEGIES)})")

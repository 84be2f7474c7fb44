"""Warm-up data: random sequences in which only true copying helps.

Each row is filled with segments: fresh random tokens, or a segment of the row
seen before, from a random place and of a random length. So neither a fixed
distance nor token statistics predict anything; finding the earlier occurrence
of the last tokens and copying what followed does.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np


def induction_batch(
    rng: np.random.Generator,
    num_rows: int,
    num_tokens: int,
    vocab_size: int,
    first_id: int,
) -> Tuple[np.ndarray, np.ndarray]:
    """ids [num_rows, num_tokens], and targets of the same shape.

    targets[r, t] is the token that follows position t where copying predicts
    it, and -100 elsewhere.
    """
    ids = np.empty((num_rows, num_tokens), dtype=np.int64)
    targets = np.full((num_rows, num_tokens), -100, dtype=np.int64)
    for row in range(num_rows):
        _fill_row(rng, ids[row], targets[row], vocab_size, first_id)
    return ids, targets


def _fill_row(
    rng: np.random.Generator,
    ids: np.ndarray,
    targets: np.ndarray,
    vocab_size: int,
    first_id: int,
) -> None:
    num_tokens = len(ids)
    fresh = int(rng.integers(num_tokens // 6, num_tokens // 2 + 1))
    ids[:fresh] = rng.integers(first_id, vocab_size, fresh)
    filled = fresh
    while filled < num_tokens:
        length = int(rng.integers(3, max(5, filled // 2)))
        length = min(length, num_tokens - filled, filled)
        end = filled + length
        if rng.random() < 0.15:
            ids[filled:end] = rng.integers(first_id, vocab_size, length)
        else:
            start = int(rng.integers(0, filled - length + 1))
            ids[filled:end] = ids[start:start + length]
            # The segment's first token is a surprise, the others are not.
            targets[filled:end - 1] = ids[filled + 1:end]
        filled = end

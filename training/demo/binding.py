"""Second warm-up: whose value is it? Random tokens, no language.

A row states facts, each a subject, a relation and a value, and then repeats
them in another order. All subjects share the relations, so the tokens right
before a value do not tell it: the subject further back must be matched as
well. Text teaches the same, but with a tenth of the density.
"""

from __future__ import annotations

from typing import List, Tuple

import numpy as np

IGNORED = -100


def binding_batch(
    rng: np.random.Generator, num_rows: int, num_tokens: int,
    vocab_size: int, first_id: int, num_subjects: int,
    longest_value: int = 3,
) -> Tuple[np.ndarray, np.ndarray, List[int]]:
    """ids and targets [num_rows, num_tokens], and the length of each value.

    Only the values of repeated facts have targets, in row-major order.
    """
    ids = np.full((num_rows, num_tokens), first_id, dtype=np.int64)
    targets = np.full((num_rows, num_tokens), IGNORED, dtype=np.int64)
    lengths: List[int] = []
    for row in range(num_rows):
        _fill_row(rng, ids[row], targets[row], lengths, vocab_size, first_id,
                  num_subjects, longest_value)
    return ids, targets, lengths


def _fill_row(
    rng: np.random.Generator, ids: np.ndarray, targets: np.ndarray,
    lengths: List[int], vocab_size: int, first_id: int, num_subjects: int,
    longest_value: int,
) -> None:
    def phrase(longest: int) -> List[int]:
        size = int(rng.integers(1, longest + 1))
        return [int(t) for t in rng.integers(first_id, vocab_size, size)]

    subjects = [phrase(3) for _ in range(num_subjects)]
    relations = [phrase(2) for _ in range(int(rng.integers(1, 4)))]
    full_stop = phrase(1)
    values = {}
    at = 0

    def put(tokens: List[int]) -> int:
        nonlocal at
        count = min(len(tokens), len(ids) - at)
        ids[at:at + count] = tokens[:count]
        at += count
        return count

    for subject in rng.permutation(num_subjects):
        # One sentence, or one for each relation.
        joined = rng.random() < 0.5
        for index, relation in enumerate(rng.permutation(len(relations))):
            values[int(subject), int(relation)] = value = phrase(longest_value)
            if index == 0 or not joined:
                put(subjects[subject])
            put(relations[relation] + value)
            if not joined:
                put(full_stop)
        if joined:
            put(full_stop)
    facts = list(values)
    while at < len(ids):
        for index in rng.permutation(len(facts)):
            subject, relation = facts[int(index)]
            value = values[subject, relation]
            put(phrase(2) if rng.random() < 0.1 else [])
            put(subjects[subject] + relations[relation])
            start = at
            count = put(value)
            if start > 0 and count > 0:
                targets[start - 1:start - 1 + count] = value[:count]
                lengths.append(count)
            put(full_stop)

"""What the marks of several systems on the same items say, with intervals.

Intervals are 95 % percentile bootstraps over items: all systems are drawn with
the same items each time, since an item is as hard for one as for the other,
and as many of each family as there are.
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np

NUM_DRAWS = 4000
SEED = 7

# system -> its mean mark
Means = Dict[str, float]


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


def gap_closed(means: Means) -> float:
    """How much of the way from pruned alone to full the pair has come."""
    gap = means["full"] - means["pruned"]
    return (means["two_stage"] - means["pruned"]) / gap if gap > 0 else 0.0


def relative_gain(means: Means) -> float:
    """Over pruned alone, as the paper counts it."""
    alone = means["pruned"]
    return means["two_stage"] / alone - 1.0 if alone > 0 else 0.0


def difference(left: str, right: str) -> Callable[[Means], float]:
    return lambda means: means[left] - means[right]


def mean_of(system: str) -> Callable[[Means], float]:
    return lambda means: means[system]


class Marks:
    """marks[system][item] is 1 where the whole answer is right."""

    def __init__(self, families: Sequence[str],
                 marks: Dict[str, Sequence[bool]]) -> None:
        self._systems = list(marks)
        self._marks = np.array([marks[s] for s in self._systems], np.float64)
        if self._marks.shape[1] != len(families):
            raise ValueError("one mark per item and system")
        self._drawn: List[List[float]] = []
        names = np.array(families)
        self._members = {family: np.flatnonzero(names == family)
                         for family in dict.fromkeys(families)}

    def only(self, family: str) -> "Marks":
        chosen = self._members[family]
        return Marks([family] * len(chosen), {
            system: list(row[chosen] > 0)
            for system, row in zip(self._systems, self._marks)})

    def estimate(self, statistic: Callable[[Means], float]) -> Estimate:
        drawn = [statistic(dict(zip(self._systems, means)))
                 for means in self._drawn_means()]
        low, high = np.percentile(drawn, (2.5, 97.5))
        means = dict(zip(self._systems, self._marks.mean(1).tolist()))
        return Estimate(statistic(means), float(low), float(high))

    def _drawn_means(self) -> List[List[float]]:
        """[draw][system], the same draws each time."""
        if not self._drawn:
            rng = np.random.default_rng(SEED)
            sums = np.zeros((NUM_DRAWS, len(self._systems)))
            for members in self._members.values():
                count = len(members)
                times = rng.multinomial(
                    count, [1 / count] * count, NUM_DRAWS)
                sums += times @ self._marks[:, members].T
            self._drawn = (sums / self._marks.shape[1]).tolist()
        return self._drawn

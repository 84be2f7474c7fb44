"""A seeded generator of a small English world: seven families of questions."""

from __future__ import annotations

import random
from typing import Callable, Dict

from training.demo import people, sequences, tables, words
from training.demo.scene import Scene

SCENES: Dict[str, Callable[[words.Namer, int], Scene]] = {
    "lookup": people.lookup_scene,
    "hops": people.hops_scene,
    "pattern": sequences.pattern_scene,
    "table": tables.table_scene,
    "rewriting": sequences.rewriting_scene,
    "counting": people.counting_scene,
    "comparing": people.comparing_scene,
}
FAMILIES = tuple(SCENES)
# How often training draws each: those of short scenes more.
WEIGHTS = {"lookup": 2, "hops": 2, "pattern": 4, "table": 2, "rewriting": 3,
           "counting": 4, "comparing": 3}


def draw_family(rng: random.Random) -> str:
    return rng.choices(FAMILIES, [WEIGHTS[name] for name in FAMILIES])[0]


def make_scene(
    rng: random.Random, family: str, size: int, held_out: bool
) -> Scene:
    """A scene of about `size` people, its questions in random order.

    With `held_out`, entities and forms are those that training never sees.
    """
    scene = SCENES[family](words.Namer(rng, held_out), size)
    rng.shuffle(scene.questions)
    return scene

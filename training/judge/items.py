"""Held-out questions as JSON lines: {id, family, prompt, bare_prompt, answer}.

    python3 -m training.judge.items --out items.jsonl

`bare_prompt` is the same question with the passage taken away. Every name,
town and thing of an item is of the held-out split, and so is the form in
which it is asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import random
from typing import List

from training.demo import world
from training.demo.scene import Scene, format_prompt

TEST_SEED = 20251
MIN_SIZE = 4
MAX_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Item:
    id: str
    family: str
    prompt: str
    bare_prompt: str
    answer: str


def make_items(seed: int, per_family: int) -> List[Item]:
    """`per_family` items of each family, each about a passage of its own."""
    items = []
    for family in world.FAMILIES:
        rng = random.Random(f"{seed} held out {family}")
        for index in range(per_family):
            scene = _draw_scene(rng, family)
            question = scene.questions[0]
            items.append(Item(
                id=f"{family}-{index}", family=family,
                prompt=format_prompt(scene.passage, question.text),
                bare_prompt=format_prompt("", question.text),
                answer=" " + question.answer))
    return items


def _draw_scene(rng: random.Random, family: str) -> Scene:
    """A passage of which something can be asked, as of nearly all."""
    while True:
        size = rng.randint(MIN_SIZE, MAX_SIZE)
        scene = world.make_scene(rng, family, size, held_out=True)
        if scene.questions:
            return scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    parser.add_argument("--per_family", type=int, default=200)
    args = parser.parse_args()
    with args.out.open("w", encoding="utf-8") as file:
        for item in make_items(args.seed, args.per_family):
            file.write(json.dumps(dataclasses.asdict(item)) + "\n")


if __name__ == "__main__":
    main()

"""Held-out questions as JSON lines: {id, family, prompt, bare_prompt, answer}.

    python3 -m training.eval_items --out items.jsonl

`bare_prompt` is the same question with the passage taken away. Every name,
place, river and noun in an item is of the held-out split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import random
from typing import List

from training import world
from training.demo.scene import format_prompt
from training.judge.items import Item

DEFAULT_SEED = 20251
MIN_SIZE = 4
MAX_SIZE = 8


def make_items(seed: int, per_family: int) -> List[Item]:
    """`per_family` items of each family, each about a passage of its own."""
    items = []
    for family in world.FAMILIES:
        rng = random.Random(f"{seed} held out {family}")
        for index in range(per_family):
            size = rng.randint(MIN_SIZE, MAX_SIZE)
            scene = world.make_scene(rng, family, size, held_out=True)
            question = scene.questions[0]
            items.append(Item(
                id=f"{family}-{index}", family=family,
                prompt=format_prompt(scene.passage, question.text),
                bare_prompt=format_prompt("", question.text),
                answer=" " + question.answer))
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--per_family", type=int, default=200)
    args = parser.parse_args()
    with args.out.open("w", encoding="utf-8") as file:
        for item in make_items(args.seed, args.per_family):
            file.write(json.dumps(dataclasses.asdict(item)) + "\n")


if __name__ == "__main__":
    main()

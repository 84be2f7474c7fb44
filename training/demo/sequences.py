"""Families about sequences of words: induction of a rule, and rewriting.

pattern: examples of one rule, and a new input. rewriting: somebody's list, and
an instruction. The answer is a sequence each time.
"""

from __future__ import annotations

import itertools
import random
from typing import Dict, List, Sequence, Tuple

from training.demo import words
from training.demo.scene import Question, Scene, forms_of_split

# A rule says which of three words, by index, the output is made of.
Rule = Tuple[int, ...]
RULES: List[Rule] = [
    order for count in (2, 3) for order in itertools.permutations(
        range(3), count) if order != (0, 1, 2)]
ARROWS = ("->", "=>", ":", "becomes", "gives")


def pattern_scene(namer: words.Namer, size: int) -> Scene:
    rng = namer.rng
    rule = rng.choice(RULES)
    arrow = rng.choice(
        forms_of_split(ARROWS, namer.held_out, RULES.index(rule)))
    pool = namer.draw_all("thing", 9 + size)
    lines = []
    for _ in range(rng.randint(3, 4)):
        given = rng.sample(pool, 3)
        lines.append(f"{' '.join(given)} {arrow} {_apply(rule, given)}")
    questions = []
    for _ in range(6):
        given = rng.sample(pool, 3)
        questions.append(Question(
            "pattern", f"{' '.join(given)} {arrow}", _apply(rule, given)))
    return Scene("\n".join(lines), questions)


def _apply(rule: Rule, given: Sequence[str]) -> str:
    return " ".join(given[index] for index in rule)


def _without(items: Sequence[str], left_out: str) -> List[str]:
    return [item for item in items if item != left_out]


INSTRUCTIONS: Dict[str, Sequence[str]] = {
    "reverse": ("Write {o}'s list backwards.", "Repeat the list of {o} backwards.",
                "What is {o}'s list backwards?"),
    "copy": ("Write {o}'s list.", "Repeat the list of {o}.",
             "What is {o}'s list?"),
    "without": ("Write {o}'s list without the {x}.",
                "Repeat the list of {o} without the {x}.",
                "What is {o}'s list without the {x}?"),
    "until": ("Write {o}'s list up to the {x}.",
              "Repeat the list of {o} up to the {x}.",
              "What is {o}'s list up to the {x}?"),
    "from": ("Write {o}'s list from the {x} on.",
             "Repeat the list of {o} from the {x} on.",
             "What is {o}'s list from the {x} on?"),
    "replace": ("Write {o}'s list with {y} for the {x}.",
                "Repeat the list of {o} with {y} for the {x}.",
                "What is {o}'s list with {y} for the {x}?"),
}


def _rewrite(
    rng: random.Random, kind: str, items: List[str], x: str, y: str
) -> List[str]:
    at = items.index(x)
    return {
        "reverse": items[::-1], "copy": items, "without": _without(items, x),
        "until": items[:at + 1], "from": items[at:],
        "replace": [y if item == x else item for item in items],
    }[kind]


def rewriting_scene(namer: words.Namer, size: int) -> Scene:
    rng = namer.rng
    owners = namer.draw_all("person", max(1, (size + 1) // 3))
    lists = {owner: namer.draw_all("thing", rng.randint(3, 5))
             for owner in owners}
    lines = [f"{owner}'s list: {', '.join(items)}."
             for owner, items in lists.items()]
    questions = []
    for owner, items in lists.items():
        for index, (kind, forms) in enumerate(INSTRUCTIONS.items()):
            x, y = rng.choice(items), namer.draw("thing")
            form = rng.choice(
                forms_of_split(forms, namer.held_out, index))
            text = form.format(o=owner, x=x, y=y)
            answer = ", ".join(_rewrite(rng, kind, items, x, y)) + "."
            questions.append(Question("rewriting", text, answer))
    return Scene("\n".join(lines), questions)

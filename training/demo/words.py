"""The words of the demo's world, and the rule that splits them in two.

Names of people and towns and the nouns of things are *entities*: a word is of
the training split or of the held-out split by its digest, so that the splits
are disjoint by construction, for listed and invented words alike. All other
words belong to both.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Dict, List, Sequence, Set

HELD_OUT_SHARE = 5  # one word in five

PEOPLE = """Anna Maria Clara Ingrid Sofia Elena Alice Emma Julia Nora Olivia
Hannah Laura Sarah Lucy Grace Ruth Helen Irene Rosa Martha Greta Astrid Freya
Lena Mila Zoe Eva Ada Ida Vera Nina Paula Diana Emily Chloe Leila Amara Carmen
Petra Olga Heidi Fiona Tom Peter Paul John James Henry George Arthur Oscar
Victor Martin Simon Thomas David Daniel Samuel Joseph Adam Noah Leo Max Felix
Hugo Erik Lars Sven Ivan Boris Marek Jan Karl Otto Hans Emil Anton Marco Luca
Diego Carlos Pablo Omar Hassan Ali Kenji Ravi Chen Liam Sean Patrick
Frank""".split()

TOWNS = """Bergen Oslo Paris London Berlin Madrid Rome Lisbon Dublin Vienna
Prague Warsaw Athens Geneva Zurich Munich Hamburg Lyon Porto Naples Turin Ghent
Bruges Utrecht Leiden York Oxford Bristol Leeds Cardiff Cork Malmo Riga Vilnius
Graz Linz Basel Bern Boston Denver Dallas Toronto Lima Quito Kyoto Delhi Cairo
Tunis Accra Dakar""".split()

NOUNS = """lantern whistle basket kettle drum ladder mirror clock compass
blanket hammer anchor bucket candle carpet chair table flute guitar violin
trumpet helmet shield sword ring crown coat scarf hat boot glove wagon boat
kite puppet doll coin key map book letter pencil brush vase bowl plate cup
spoon knife pan pot barrel box chest stool lamp bell wheel rope saw shovel rake
broom pillow camera radio teapot""".split()

JOBS = """baker teacher doctor farmer nurse pilot sailor painter singer writer
lawyer judge butcher tailor potter weaver gardener builder miller hunter dancer
poet driver clerk banker cook waiter barber dentist printer shepherd
soldier""".split()

ANIMALS = """cat dog horse goat sheep duck goose rabbit parrot turtle pony
canary hamster donkey ferret pigeon lizard mouse""".split()

FOODS = """bread cheese soup rice fish plums cherries apples pears grapes honey
noodles olives carrots beans walnuts porridge lemons figs dates peas
onions""".split()

COLOURS = """red green blue yellow white black brown grey purple orange pink
golden silver""".split()

MATERIALS = """wooden copper tin glass iron leather paper stone clay steel
velvet brass""".split()

NUMBERS = """zero one two three four five six seven eight nine ten""".split()

# Invented words are of two syllables, and towns have an ending as well: few
# tokens each, and every pair of syllables as likely as any other.
_SYLLABLES = ["".join(parts) for parts in itertools.product(
    ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"),
    "aeiou", ("l", "n", "r"))][::2]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ENDS = {"person": ("", "", "a", "o"), "town": ("burg", "ton", "vik", "dal"),
         "thing": ("", "", "et", "ix")}
_LISTED: Dict[str, Sequence[str]] = {
    "person": PEOPLE, "town": TOWNS, "thing": NOUNS}
_LISTED_SHARE = 0.35
_STRANGE_SHARE = 0.1  # letters in any order: no pair of them is a stranger


def is_held_out(word: str) -> bool:
    digest = hashlib.sha256(word.lower().encode("utf-8")).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def of_split(words: Sequence[str], held_out: bool) -> List[str]:
    return [word for word in words if is_held_out(word) == held_out]


def _spell(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) + rng.choice("aeiouy")
                   for _ in range(rng.randint(2, 3)))


def _invent(rng: random.Random, kind: str, held_out: bool) -> str:
    while True:
        if rng.random() < _STRANGE_SHARE:
            word = _spell(rng)
        else:
            word = (rng.choice(_SYLLABLES) + rng.choice(_SYLLABLES)
                    + rng.choice(_ENDS[kind]))
        if is_held_out(word) == held_out:
            return word if kind == "thing" else word.capitalize()


class Namer:
    """Draws entities of one split, no two of a passage that begin alike."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self._used: Set[str] = set()
        self._listed = {kind: of_split(words, held_out)
                        for kind, words in _LISTED.items()}

    def draw(self, kind: str) -> str:
        while True:
            if self.rng.random() < _LISTED_SHARE:
                word = self.rng.choice(self._listed[kind])
            else:
                word = _invent(self.rng, kind, self.held_out)
            # Words that begin alike would make a spelling test of a question.
            beginning = word[:3].lower()
            if beginning not in self._used:
                self._used.add(beginning)
                return word

    def draw_all(self, kind: str, count: int) -> List[str]:
        return [self.draw(kind) for _ in range(count)]


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def listing(items: Sequence[str]) -> str:
    """a, b and c"""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + " and " + items[-1]

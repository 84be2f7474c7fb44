"""The words of the world, and the rule that splits them in two.

Names of people, places and rivers and the nouns of objects are *entities*: a
word belongs to the training split or to the held-out split by its digest, so
the splits are disjoint by construction, for listed and invented words alike.
Jobs, colours, materials, foods and numbers are ordinary words of both.
"""

from __future__ import annotations

import hashlib
import random
from typing import List, Sequence

HELD_OUT_SHARE = 5  # one word in five

WOMEN = """Anna Maria Clara Ingrid Sofia Elena Alice Emma Julia Nora Olivia
Hannah Laura Sarah Lucy Grace Ruth Helen Irene Rosa Martha Greta Astrid Freya
Lena Mila Zoe Eva Ada Ida Vera Nina Paula Diana Emily Chloe Fatima Leila Amara
Yuki Mei Priya Anita Carmen Lucia Isabel Teresa Monica Petra Olga Tanya
Katrin Heidi Bridget Fiona Moira Maeve Sinead Celine Margot""".split()

MEN = """Tom Peter Paul John James Henry George Arthur Oscar Victor Martin
Simon Thomas David Daniel Samuel Joseph Adam Noah Leo Max Felix Hugo Erik Lars
Bjorn Olaf Sven Ivan Boris Dmitri Pavel Marek Jan Karl Otto Hans Emil Anton
Marco Luca Paolo Diego Carlos Pablo Miguel Omar Hassan Ali Kenji Hiro Ravi
Arjun Chen Wei Liam Sean Patrick Ewan Angus Frank""".split()

TOWNS = """Bergen Oslo Paris London Berlin Madrid Rome Lisbon Dublin Vienna
Prague Warsaw Athens Helsinki Stockholm Geneva Zurich Munich Hamburg Lyon
Porto Seville Naples Turin Ghent Bruges Utrecht Leiden York Oxford Bristol
Leeds Cardiff Galway Cork Tromso Uppsala Malmo Aarhus Odense Tartu Riga
Vilnius Krakow Gdansk Brno Graz Linz Basel Bern Boston Denver Austin Dallas
Seattle Toronto Ottawa Quebec Lima Quito Kyoto Osaka Delhi Cairo Tunis
Nairobi Accra Dakar""".split()

RIVERS = """Rhine Danube Thames Seine Elbe Oder Tiber Loire Ebro Volga Nile
Severn Tyne Avon Clyde Tagus Douro Vistula Glomma Neva Po Drava Sava Meuse
Moselle Main Isar Inn Aare Rhone""".split()

NOUNS = """lantern whistle basket kettle drum ladder mirror clock compass
blanket hammer anchor bucket candle carpet chair table cradle flute guitar
violin trumpet helmet shield sword ring crown coat scarf hat boot glove
umbrella suitcase wagon bicycle boat kite puppet doll marble coin key map
book letter pencil brush vase bowl plate cup spoon knife pan pot barrel box
chest drawer bench stool lamp bell wheel rope saw shovel rake broom pillow
camera radio telescope teapot necklace bracelet""".split()

JOBS = """baker teacher doctor farmer nurse pilot sailor painter singer
writer lawyer judge butcher tailor potter weaver gardener plumber builder
carpenter miller fisher hunter dancer poet driver clerk banker cook waiter
barber chemist dentist surgeon librarian mechanic printer porter shepherd
soldier blacksmith beekeeper watchmaker locksmith translator""".split()

COLOURS = """red green blue yellow white black brown grey purple orange pink
golden silver""".split()

MATERIALS = """wooden copper tin glass iron leather paper stone clay steel
bamboo velvet cotton brass""".split()

FOODS = """bread cheese soup rice fish plums cherries apples pears grapes
honey noodles pancakes dumplings olives carrots beans mushrooms walnuts
porridge lemons figs dates peas onions tomatoes""".split()

ROOMS = """kitchen attic cellar garden hall library stable barn garage
workshop pantry bedroom tower chapel shed office""".split()

NUMBERS = """zero one two three four five six seven eight nine ten""".split()

_ONSETS = """b br d dr f fl g gr h j k kl kr l m n p pl r s sk sl st t tr v
w y z sh th ch""".split()
_VOWELS = "a e i o u a e i o u ai au ei ia oa ea".split()
_CODAS = ["", "", "", "l", "n", "r", "s", "m", "t", "k", "nd", "rn", "x", "d"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ENDS = {
    "person": ["", "", "a", "o", "en", "is", "ik", "el", "ina", "us"],
    "town": ["", "burg", "ville", "ford", "stad", "heim", "ton", "mouth",
             "by", "vik", "dal", "ia"],
    "river": ["", "a", "e", "us", "el", "ava"],
    "object": ["", "ix", "ator", "et", "ling", "op", "um"],
}


def is_held_out(word: str) -> bool:
    digest = hashlib.sha256(word.lower().encode("utf-8")).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def of_split(words: Sequence[str], held_out: bool) -> List[str]:
    return [word for word in words if is_held_out(word) == held_out]


def _spell(rng: random.Random) -> str:
    """Letters in nearly any order, so that no pair of them is a stranger."""
    word = ""
    for _ in range(rng.randint(2, 4)):
        word += rng.choice(_LETTERS) + rng.choice("aeiouy")
        if rng.random() < 0.3:
            word += rng.choice(_LETTERS)
    return word


def _join_syllables(rng: random.Random, kind: str) -> str:
    word = ""
    for _ in range(rng.choice((1, 1, 1, 2))):
        word += (rng.choice(_ONSETS) + rng.choice(_VOWELS)
                 + rng.choice(_CODAS))
    return word + rng.choice(_ENDS[kind])


def invent(rng: random.Random, kind: str, held_out: bool) -> str:
    """A random word of the split; lower case for objects."""
    while True:
        word = (_spell(rng) if rng.random() < 0.3
                else _join_syllables(rng, kind))
        if 4 <= len(word) <= 12 and is_held_out(word) == held_out:
            return word if kind == "object" else word.capitalize()

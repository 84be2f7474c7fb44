"""A seeded generator of a small English reading-comprehension world.

A scene is a passage and the questions that it answers. People live in towns,
have jobs, friends and belongings; things have prices, colours and places.
Four families are looked up and copied (people, things, records, lists), four
are harder: reverse (whose value is it?), two_hop, counting and comparing.

The one prompt format is `format_prompt`; the answer follows it after a space
and ends with the end-of-text token.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Callable, Dict, List, Sequence, Set

from training import words
from training.demo.scene import Question, Scene

LOOKUP_FAMILIES = ("people", "things")
COPY_FAMILIES = ("people", "things", "records", "lists")
HARD_FAMILIES = ("reverse", "two_hop", "counting", "comparing")
FAMILIES = COPY_FAMILIES + HARD_FAMILIES


@dataclasses.dataclass(frozen=True)
class Person:
    name: str
    pronoun: str  # "He" or "She"
    town: str
    job: str
    belonging: str  # "red tin whistle"
    food: str
    friend: str
    age: int


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


class Namer:
    """Draws entities of one split, no two in a scene that begin alike."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self._used: Set[str] = set()
        self._women = words.of_split(words.WOMEN, held_out)
        self._men = words.of_split(words.MEN, held_out)
        self._towns = words.of_split(words.TOWNS, held_out)
        self._rivers = words.of_split(words.RIVERS, held_out)
        self._nouns = words.of_split(words.NOUNS, held_out)

    def _draw(self, kind: str, listed: Sequence[str], share: float) -> str:
        while True:
            if self.rng.random() < share:
                word = self.rng.choice(listed)
            else:
                word = words.invent(self.rng, kind, self.held_out)
            # Names that begin alike in one passage would be a spelling test.
            beginning = word[:3].lower()
            if beginning not in self._used:
                self._used.add(beginning)
                return word

    def person_name(self, pronoun: str) -> str:
        listed = self._women if pronoun == "She" else self._men
        return self._draw("person", listed, 0.3)

    def town(self) -> str:
        return self._draw("town", self._towns, 0.3)

    def river(self) -> str:
        return self._draw("river", self._rivers, 0.3)

    def noun(self) -> str:
        return self._draw("object", self._nouns, 0.4)

    def distinct(self, listed: Sequence[str], count: int) -> List[str]:
        return self.rng.sample(list(listed), count)


def make_people(namer: Namer, count: int) -> List[Person]:
    rng = namer.rng
    jobs = namer.distinct(words.JOBS, count)
    foods = namer.distinct(words.FOODS, count)
    ages = rng.sample(range(18, 90), count)
    people = []
    for index in range(count):
        pronoun = rng.choice(("He", "She"))
        adjective = rng.choice(words.COLOURS + words.MATERIALS)
        people.append(Person(
            name=namer.person_name(pronoun),
            pronoun=pronoun,
            town=namer.town(),
            job=jobs[index],
            belonging=f"{adjective} {namer.noun()}",
            food=foods[index],
            friend=namer.person_name(rng.choice(("He", "She"))),
            age=ages[index],
        ))
    return people


# What a passage may say of a person ({s} is the name or the pronoun), how one
# may ask for it, and the one answer.
PERSON_FACTS: Dict[str, Dict[str, List[str]]] = {
    "town": {
        "says": ["{s} lives in {v}.", "{s} lives in {v}.",
                 "{s} lives in the town of {v}."],
        "asks": ["Where does {n} live?", "In which town does {n} live?",
                 "Which town does {n} live in?"],
        "reverse": ["Who lives in {v}?"],
        "answer": ["{n} lives in {v}."],
    },
    "job": {
        "says": ["{s} works as {a}.", "{s} works as {a}.", "{s} is {a}."],
        "asks": ["What does {n} do?", "What is {n}'s job?",
                 "What does {n} work as?", "What is the job of {n}?"],
        "reverse": ["Who works as {a}?", "Who is {a}?"],
        "answer": ["{n} works as {a}."],
    },
    "belonging": {
        "says": ["{s} owns {a}.", "{s} has {a}.", "{s} owns {a}."],
        "asks": ["What does {n} own?", "What does {n} have?",
                 "What belongs to {n}?"],
        "reverse": ["Who owns {a}?", "Who has {a}?"],
        "answer": ["{n} owns {a}."],
    },
    "food": {
        "says": ["{s} likes {v}.", "{s} likes to eat {v}."],
        "asks": ["What does {n} like?", "What does {n} like to eat?"],
        "reverse": ["Who likes {v}?", "Who likes to eat {v}?"],
        "answer": ["{n} likes {v}."],
    },
    "friend": {
        "says": ["{s} is a friend of {v}.", "{s} knows {v} well."],
        "asks": ["Who is a friend of {n}?", "Whom does {n} know?",
                 "Who is {n}'s friend?"],
        "reverse": [],
        "answer": ["{n} is a friend of {v}."],
    },
}
# Facts that join into one sentence: "Anna lives in Bergen and works as ...".
_JOINED = {
    "town": "lives in {v}", "job": "works as {a}", "belonging": "owns {a}",
    "food": "likes {v}", "friend": "is a friend of {v}",
}


def _fill(template: str, subject: str, name: str, value: str) -> str:
    return template.format(s=subject, n=name, v=value, a=article(value))


def _tell_person(
    rng: random.Random, person: Person, facts: Sequence[str]
) -> List[str]:
    """One to three sentences, in order, the first of which has the name."""
    sentences = []
    remaining = list(facts)
    while remaining:
        first = not sentences
        subject = (person.name if first or rng.random() < 0.7
                   else person.pronoun)
        fact = remaining.pop(0)
        if remaining and rng.random() < 0.5:
            second = remaining.pop(0)
            left = _fill(_JOINED[fact], "", "", getattr(person, fact))
            right = _fill(_JOINED[second], "", "", getattr(person, second))
            sentences.append(f"{subject} {left} and {right}.")
        else:
            says = rng.choice(PERSON_FACTS[fact]["says"])
            sentences.append(
                _fill(says, subject, person.name, getattr(person, fact)))
    return sentences


def people_scene(namer: Namer, size: int) -> Scene:
    return _scene_of_people(namer, size, "people", "asks")


def reverse_scene(namer: Namer, size: int) -> Scene:
    return _scene_of_people(namer, size, "reverse", "reverse")


def _scene_of_people(
    namer: Namer, size: int, family: str, asks: str
) -> Scene:
    """Facts that can be asked for by the forms `asks` of PERSON_FACTS."""
    rng = namer.rng
    people = make_people(namer, size)
    known = [fact for fact in sorted(PERSON_FACTS) if PERSON_FACTS[fact][asks]]
    num_facts = rng.choice((1, 2, 2, 3)) if size > 1 else 3
    sentences: List[str] = []
    questions: List[Question] = []
    for person in people:
        facts = rng.sample(known, num_facts)
        sentences += _tell_person(rng, person, facts)
        for fact in facts:
            forms = PERSON_FACTS[fact]
            value = str(getattr(person, fact))
            questions.append(Question(
                family, _fill(rng.choice(forms[asks]), "", person.name, value),
                _fill(forms["answer"][0], "", person.name, value)))
    return Scene(" ".join(sentences), questions)


THING_FACTS: Dict[str, Dict[str, List[str]]] = {
    "colour": {
        "says": ["The {n} is {v}."],
        "asks": ["What colour is the {n}?", "Which colour does the {n} have?"],
        "answer": ["The {n} is {v}."],
    },
    "price": {
        "says": ["The {n} costs {v} coins.", "The price of the {n} is {v} coins."],
        "asks": ["How much does the {n} cost?", "What does the {n} cost?",
                 "What is the price of the {n}?"],
        "answer": ["The {n} costs {v} coins."],
    },
    "room": {
        "says": ["The {n} is kept in the {v}.", "The {n} stands in the {v}."],
        "asks": ["Where is the {n}?", "Where is the {n} kept?"],
        "answer": ["The {n} is in the {v}."],
    },
    "maker": {
        "says": ["The {n} was made by {v}.", "{v} made the {n}."],
        "asks": ["Who made the {n}?", "By whom was the {n} made?"],
        "answer": ["The {n} was made by {v}."],
    },
    "origin": {
        "says": ["The {n} comes from {v}.", "The {n} was brought from {v}."],
        "asks": ["Where does the {n} come from?",
                 "Which town does the {n} come from?"],
        "answer": ["The {n} comes from {v}."],
    },
}


def things_scene(namer: Namer, size: int) -> Scene:
    rng = namer.rng
    num_facts = rng.choice((1, 2, 2, 3)) if size > 1 else 3
    rooms = namer.distinct(words.ROOMS, min(size, len(words.ROOMS)))
    sentences: List[str] = []
    questions: List[Question] = []
    for index in range(size):
        noun = namer.noun()
        for fact in rng.sample(sorted(THING_FACTS), num_facts):
            value = {
                "colour": lambda: rng.choice(words.COLOURS),
                "price": lambda: str(rng.randint(2, 999)),
                "room": lambda: rooms[index],
                "maker": lambda: namer.person_name("He"),
                "origin": namer.town,
            }[fact]()
            forms = THING_FACTS[fact]
            sentences.append(_fill(rng.choice(forms["says"]), "", noun, value))
            questions.append(Question(
                "things", _fill(rng.choice(forms["asks"]), "", noun, value),
                _fill(forms["answer"][0], "", noun, value)))
    if rng.random() < 0.3:
        rng.shuffle(sentences)
    return Scene(" ".join(sentences), questions)


def records_scene(namer: Namer, size: int) -> Scene:
    """Blocks of "Field: value" lines; the answer is the value alone."""
    rng = namer.rng
    fields = ["Town", "Job", "Phone", "Item", "Friend"]
    chosen = rng.sample(fields, rng.choice((1, 2, 2, 3)) if size > 1 else 3)
    blocks: List[str] = []
    questions: List[Question] = []
    for person in make_people(namer, size):
        values = {
            "Town": person.town, "Job": person.job, "Item": person.belonging,
            "Friend": person.friend,
            "Phone": f"{rng.randint(100, 999)}-{rng.randint(100, 999)}",
        }
        lines = [f"Name: {person.name}"]
        for field in chosen:
            lines.append(f"{field}: {values[field]}")
            ask = rng.choice(("What is the {f} of {n}?", "What is {n}'s {f}?",
                              "Which {f} does {n} have?"))
            text = ask.format(f=field.lower(), n=person.name)
            questions.append(Question("records", text, values[field]))
        blocks.append("\n".join(lines))
    return Scene("\n\n".join(blocks), questions)


def lists_scene(namer: Namer, size: int) -> Scene:
    """Several people's lists; the answer is one whole list."""
    rng = namer.rng
    verb, ask = rng.choice((
        ("packed", "What did {n} pack?"), ("bought", "What did {n} buy?"),
        ("sold", "What did {n} sell?"), ("found", "What did {n} find?")))
    lines: List[str] = []
    questions: List[Question] = []
    for _ in range(max(1, (size + 1) // 2)):
        name = namer.person_name(rng.choice(("He", "She")))
        items = [article(namer.noun()) for _ in range(rng.randint(2, 4))]
        listing = ", ".join(items[:-1]) + " and " + items[-1]
        lines.append(f"{name} {verb} {listing}.")
        questions.append(Question(
            "lists", ask.format(n=name), f"{name} {verb} {listing}."))
    return Scene(" ".join(lines), questions)


def two_hop_scene(namer: Namer, size: int) -> Scene:
    rng = namer.rng
    people = make_people(namer, max(2, size))
    sentences: List[str] = []
    questions: List[Question] = []
    for person in people:
        thing = article(person.belonging)
        sentences.append(f"{person.name} owns {thing}.")
        sentences.append(f"{person.name} lives in {person.town}.")
        questions.append(Question(
            "two_hop", f"Where does the owner of the {person.belonging} live?",
            f"The owner lives in {person.town}."))
    rng.shuffle(sentences)
    return Scene(" ".join(sentences), questions)


def counting_scene(namer: Namer, size: int) -> Scene:
    rng = namer.rng
    towns = [namer.town() for _ in range(2)]
    homes: Dict[str, int] = {town: 0 for town in towns}
    sentences: List[str] = []
    for _ in range(max(2, size)):
        town = rng.choice(towns)
        homes[town] += 1
        name = namer.person_name(rng.choice(("He", "She")))
        sentences.append(f"{name} lives in {town}.")
    questions = []
    for town, count in homes.items():
        people = "person lives" if count == 1 else "people live"
        answer = f"{words.NUMBERS[count].capitalize()} {people} in {town}."
        questions.append(Question(
            "counting", f"How many people live in {town}?", answer))
    return Scene(" ".join(sentences), questions)


def comparing_scene(namer: Namer, size: int) -> Scene:
    rng = namer.rng
    people = make_people(namer, max(2, size))
    sentences = [f"{person.name} is {person.age} years old."
                 for person in people]
    questions: List[Question] = []
    for _ in range(len(people)):
        left, right = rng.sample(people, 2)
        older = left if left.age > right.age else right
        questions.append(Question(
            "comparing", f"Who is older, {left.name} or {right.name}?",
            f"{older.name} is older."))
    return Scene(" ".join(sentences), questions)


_SCENES: Dict[str, Callable[[Namer, int], Scene]] = {
    "people": people_scene, "things": things_scene,
    "records": records_scene, "lists": lists_scene,
    "reverse": reverse_scene, "two_hop": two_hop_scene, "counting": counting_scene,
    "comparing": comparing_scene,
}


def make_scene(
    rng: random.Random, family: str, size: int, held_out: bool
) -> Scene:
    """A scene of `size` people or things, its questions in random order."""
    scene = _SCENES[family](Namer(rng, held_out), size)
    rng.shuffle(scene.questions)
    return scene

"""Passages about people, and four families of questions about them.

lookup: one fact among many. hops: a fact of somebody's friend or boss, and who
that is. counting: how many, and who. comparing: who of two, or of all, is the
older or the younger, and how old.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Dict, Iterator, List, Sequence

from training.demo import words
from training.demo.scene import Question, Scene, forms_of_split


@dataclasses.dataclass(frozen=True)
class Relation:
    noun: str      # "home"
    says: str      # "lives in {v}"
    asks: str      # "Where does {n} live?"
    is_to_person: bool = False


RELATIONS: Dict[str, Relation] = {
    "home": Relation("home", "lives in {v}", "Where does {n} live?"),
    "job": Relation("job", "works as {a}", "What does {n} work as?"),
    "pet": Relation("pet", "keeps {a}", "What does {n} keep?"),
    "food": Relation("food", "likes {v}", "What does {n} like?"),
    "item": Relation("treasure", "owns {a}", "What does {n} own?"),
    "friend": Relation("friend", "knows {v}", "Whom does {n} know?", True),
    "boss": Relation("boss", "works for {v}", "Whom does {n} work for?", True),
}
PERSONAL = [name for name, r in RELATIONS.items() if r.is_to_person]
PLAIN = [name for name, r in RELATIONS.items() if not r.is_to_person]

# Of the forms with {noun}, the relation's, one is held out for each relation.
# Those with the relation's own words are not: there are no others like them.
VERB_STATEMENT = "{n} {says}."
STATEMENTS = ("{n}'s {noun} is {v}.", "The {noun} of {n} is {v}.")
VERB_QUESTION = "{asks}"
QUESTIONS = ("What is {n}'s {noun}?", "What is the {noun} of {n}?",
             "{n}'s {noun}?", "Tell me the {noun} of {n}.")
HOPS = ("What is the {noun} of {n}'s {via}?", "What is {n}'s {via}'s {noun}?",
        "What is the {noun} of the {via} of {n}?", "{n}'s {via}'s {noun}?",
        "Tell me the {noun} of {n}'s {via}.")


@dataclasses.dataclass(frozen=True)
class Person:
    name: str
    facts: Dict[str, str]  # relation -> value, those that the passage tells
    age: int


def make_people(
    namer: words.Namer, size: int, relations: Sequence[str]
) -> List[Person]:
    """Friends and bosses are of the passage; homes are shared."""
    rng = namer.rng
    names = namer.draw_all("person", size)
    towns = namer.draw_all("town", max(2, (size + 2) // 3))
    ages = rng.sample(range(18, 90), size)
    people = []
    for index, name in enumerate(names):
        others = (names[:index] + names[index + 1:]
                  or namer.draw_all("person", 1))
        values = {
            "home": lambda: rng.choice(towns),
            "job": lambda: rng.choice(words.JOBS),
            "pet": lambda: rng.choice(words.ANIMALS),
            "food": lambda: rng.choice(words.FOODS),
            "item": lambda: (rng.choice(words.COLOURS + words.MATERIALS) + " "
                             + namer.draw("thing")),
            "friend": lambda: rng.choice(others),
            "boss": lambda: rng.choice(others),
        }
        people.append(Person(
            name, {relation: values[relation]() for relation in relations},
            ages[index]))
    return people


def _fill(form: str, relation: Relation, name: str, value: str) -> str:
    words_of = {"n": name, "v": value, "a": words.article(value or "x")}
    return form.format(
        noun=relation.noun, says=relation.says.format(**words_of),
        asks=relation.asks.format(**words_of), **words_of)


def _index(relation: str) -> int:
    return list(RELATIONS).index(relation)


def _relation_form(
    rng: random.Random, verb: str, forms: Sequence[str], held_out: bool,
    relation: str,
) -> str:
    """Half of the time, where the split has it, the relation's own form."""
    if not held_out and rng.random() < 0.5:
        return verb
    return rng.choice(forms_of_split(forms, held_out, _index(relation)))


def tell(rng: random.Random, people: Sequence[Person], held_out: bool) -> str:
    """All facts, person by person or one by one; some two in a sentence."""
    groups: List[List[str]] = []
    for person in people:
        sentences: List[str] = []
        facts = list(person.facts.items())
        rng.shuffle(facts)
        while facts:
            relation, value = facts.pop()
            if facts and rng.random() < 0.25:
                other, other_value = facts.pop()
                first = _fill("{says}", RELATIONS[relation], "", value)
                second = _fill("{says}", RELATIONS[other], "", other_value)
                sentences.append(f"{person.name} {first} and {second}.")
                continue
            form = _relation_form(
                rng, VERB_STATEMENT, STATEMENTS,
                held_out and rng.random() < 0.5, relation)
            sentences.append(
                _fill(form, RELATIONS[relation], person.name, value))
        groups.append(sentences)
    if rng.random() < 0.3:
        groups = [[sentence] for group in groups for sentence in group]
        rng.shuffle(groups)
    return " ".join(sentence for group in groups for sentence in group)


def lookups(
    rng: random.Random, people: Sequence[Person], held_out: bool
) -> Iterator[Question]:
    for person in people:
        for relation, value in person.facts.items():
            form = _relation_form(
                rng, VERB_QUESTION, QUESTIONS, held_out, relation)
            yield Question(
                "lookup", _fill(form, RELATIONS[relation], person.name, ""),
                f"{value}.")


def hops(
    rng: random.Random, people: Sequence[Person], held_out: bool
) -> Iterator[Question]:
    by_name = {person.name: person for person in people}
    for person in people:
        for via in PERSONAL:
            other = by_name.get(person.facts.get(via, ""))
            if other is None:
                continue
            for relation, value in other.facts.items():
                form = rng.choice(forms_of_split(
                    HOPS, held_out, 2 * _index(relation) + _index(via)))
                text = form.format(
                    n=person.name, noun=RELATIONS[relation].noun,
                    via=RELATIONS[via].noun)
                yield Question("hops", text, f"{other.name}, {value}.")


COUNTS = {
    "home": "How many people live in {v}?",
    "job": "How many people work as {a}?",
    "pet": "How many people keep {a}?",
    "food": "How many people like {v}?",
    "friend": "How many people know {v}?",
    "boss": "How many people work for {v}?",
}
NOUN_COUNTS = ("How many people have the {noun} {v}?",
               "What is the number of people who have the {noun} {v}?",
               "Tell me how many people have the {noun} {v}.")


def counts(
    rng: random.Random, people: Sequence[Person], held_out: bool
) -> Iterator[Question]:
    told = sorted({(relation, value) for person in people
                   for relation, value in person.facts.items()
                   if relation in COUNTS})
    for relation, value in told:
        who = [person.name for person in people
               if person.facts.get(relation) == value]
        if len(who) > 5:
            continue
        form = _relation_form(
            rng, COUNTS[relation], NOUN_COUNTS, held_out, relation)
        text = form.format(v=value, a=words.article(value),
                           noun=RELATIONS[relation].noun)
        number = words.NUMBERS[len(who)]
        yield Question("counting", text, f"{words.listing(who)}: {number}.")


SAYS_AGE = ("{n} is {v} years old.", "The age of {n} is {v}.",
            "{n}'s age is {v}.")
HELD_OUT_AGE = 2  # its words are known from the other two
OF_TWO = ("Who is {c}, {x} or {y}?", "Which person is {c}, {x} or {y}?",
          "Of {x} and {y}, who is {c}?")
OF_ALL = ("Who is the {s}?", "Which person is the {s}?",
          "Of all people, who is the {s}?")
ORDERS = {"older": "oldest", "younger": "youngest"}


def compare(
    rng: random.Random, people: Sequence[Person], held_out: bool
) -> Iterator[Question]:
    for index, (comparative, superlative) in enumerate(ORDERS.items()):
        best = max if comparative == "older" else min
        pairs = [rng.sample(list(people), 2) for _ in range(3)]
        for chosen in [*pairs, list(people)]:
            forms = OF_TWO if len(chosen) == 2 else OF_ALL
            form = rng.choice(forms_of_split(forms, held_out, index))
            answer = best(chosen, key=lambda person: person.age)
            yield Question(
                "comparing",
                form.format(c=comparative, s=superlative, x=chosen[0].name,
                            y=chosen[1].name),
                f"{answer.name}, {answer.age}.")


def lookup_scene(namer: words.Namer, size: int) -> Scene:
    return _scene(namer, size, 1, 2, (lookups,))


def hops_scene(namer: words.Namer, size: int) -> Scene:
    return _scene(namer, max(2, size), 1, 1, (hops,))


def counting_scene(namer: words.Namer, size: int) -> Scene:
    rng = namer.rng
    relation = rng.choice(list(COUNTS))
    people = make_people(namer, max(2, size), [relation])
    # A few values only, so that there is something to count.
    values = sorted({person.facts[relation] for person in people})
    few = rng.sample(values, min(len(values), max(2, size // 3)))
    people = [dataclasses.replace(
        person, facts={relation: rng.choice(
            [v for v in few if v != person.name] or few)})
              for person in people]
    return Scene(tell(rng, people, namer.held_out),
                 list(counts(rng, people, namer.held_out)))


def comparing_scene(namer: words.Namer, size: int) -> Scene:
    rng = namer.rng
    people = make_people(namer, max(2, size), [])
    form = rng.choice(
        forms_of_split(SAYS_AGE, namer.held_out, HELD_OUT_AGE))
    sentences = [form.format(n=person.name, v=person.age) for person in people]
    return Scene(" ".join(sentences),
                 list(compare(rng, people, namer.held_out)))


def _scene(
    namer: words.Namer, size: int, num_personal: int, num_plain: int,
    asks: Sequence[object],
) -> Scene:
    rng = namer.rng
    relations = (rng.sample(PERSONAL, num_personal)
                 + rng.sample(PLAIN, num_plain))
    people = make_people(namer, size, relations)
    questions = [question for ask in asks
                 for question in ask(rng, people, namer.held_out)]
    return Scene(tell(rng, people, namer.held_out), questions)

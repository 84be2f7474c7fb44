"""Questions about a table: a cell, whose cell it is, a whole row."""

from __future__ import annotations

from typing import Dict, List, Sequence

from training.demo import words
from training.demo.people import RELATIONS, make_people
from training.demo.scene import Question, Scene, forms_of_split

CELL = ("What is the {c} of {n}?", "What is {n}'s {c}?", "{n}'s {c}?",
        "Tell me the {c} of {n}.")
WHOSE = ("Who has the {c} {v}?", "Whose {c} is {v}?", "{v} is the {c} of whom?")
ROW = ("What is the row of {n}?", "What is {n}'s row?",
       "Tell me the row of {n}.")


def table_scene(namer: words.Namer, size: int) -> Scene:
    rng = namer.rng
    columns = rng.sample(sorted(RELATIONS), rng.randint(2, 3))
    people = make_people(namer, max(2, size), columns)
    rows = [["name"] + [RELATIONS[column].noun for column in columns]]
    rows += [[person.name] + [person.facts[column] for column in columns]
             for person in people]
    times: Dict[str, int] = {}
    for person in people:
        for value in person.facts.values():
            times[value] = times.get(value, 0) + 1
    questions: List[Question] = []

    def ask(forms: Sequence[str], answer: str, column: str = "",
            **parts: str) -> None:
        noun = RELATIONS[column].noun if column else ""
        index = list(RELATIONS).index(column) if column else 0
        form = rng.choice(forms_of_split(forms, namer.held_out, index))
        text = form.format(c=noun, **parts)
        questions.append(Question("table", text, answer + "."))

    for person, row in zip(people, rows[1:]):
        ask(ROW, " | ".join(row), n=person.name)
        for column in columns:
            value = person.facts[column]
            ask(CELL, value, column, n=person.name)
            if times[value] == 1:
                ask(WHOSE, person.name, column, v=value)
    return Scene("\n".join(" | ".join(row) for row in rows), questions)

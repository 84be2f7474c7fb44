"""What a family makes: a passage, and the questions that it answers.

The one prompt format is `format_prompt`; the answer follows it after a space
and ends with the end-of-text token.
"""

from __future__ import annotations

import dataclasses
from typing import List, Sequence


@dataclasses.dataclass(frozen=True)
class Question:
    family: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Scene:
    passage: str
    questions: List[Question]


def format_prompt(passage: str, question: str) -> str:
    if not passage:
        return f"Question: {question}\nAnswer:"
    return f"{passage}\nQuestion: {question}\nAnswer:"


def forms_of_split(
    forms: Sequence[str], held_out: bool, index: int
) -> Sequence[str]:
    """The forms that a split may use of what is number `index` of its kind.

    One of the forms is the test's alone, in turn: what is next to it in the
    list leaves out another one. So each form, and each word of it, is known
    from training, and it is their combination that is not.
    """
    only_in_test = forms[index % len(forms)]
    if held_out:
        return [only_in_test]
    return [form for form in forms if form != only_in_test]

"""What a family makes: a passage, and the questions that it answers.

The one prompt format is `format_prompt`; the answer follows it after a space
and ends with the end-of-text token.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Iterable, List


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
    forms: Iterable[str], held_out: bool, *parts: str
) -> List[str]:
    """The forms that a split may use together with `parts`.

    One of the forms is the test's alone, another one for other parts: so each
    word and each form is known from training, and their combination is not.
    """
    def rank(form: str) -> bytes:
        text = "/".join((*parts, form))
        return hashlib.sha256(text.encode("utf-8")).digest()

    only_in_test = min(forms, key=rank)
    if held_out:
        return [only_in_test]
    return [form for form in forms if form != only_in_test]

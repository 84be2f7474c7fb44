"""Lines of training data, as token rows with the spans of their answers.

A line is a JSON object of one of these forms; other members are ignored:
    {"prompt": "...", "answer": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}
    {"conversations": [{"from": "human", "value": "..."}, ...]}
Every answer of a chat is learned, with all that comes before it as its
prompt. Prompt and answer are tokenised apart, since a server sees the prompt
alone; an answer ends with the token that ends it when served.
"""

from __future__ import annotations

import dataclasses
from typing import (
    Any, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple, Union)

from training.errors import UserError
from training.json_file import parse_json

MAX_LINE_BYTES = 16 << 20
MAX_MESSAGES = 1000
_ROLES = {"system": "system", "user": "user", "human": "user",
          "assistant": "assistant", "gpt": "assistant"}

Message = Dict[str, str]


class Tokenizer(Protocol):
    """What is used of text_tokenizer.TextTokenizer."""

    eos_id: Optional[int]
    eos_ids: List[int]

    def encode_all(self, texts: Sequence[str], add_bos: bool,
                   parse_special: bool) -> List[List[int]]: ...

    def render_chat(self, messages: Sequence[Message],
                    add_generation_prompt: bool) -> str: ...


@dataclasses.dataclass(frozen=True)
class Example:
    """Either a prompt and its answer, or a chat."""

    origin: str  # FILE:LINE
    prompt: str = ""
    answer: str = ""
    messages: Tuple[Message, ...] = ()


class Row(NamedTuple):
    ids: List[int]
    answers: List[Tuple[int, int]]  # start, length


class OtherLanguage:
    """A line that is left out."""


def parse_line(
    line: bytes, origin: str, use_template: bool = False, language: str = "",
) -> Union[None, OtherLanguage, Example]:
    """None for a blank line. `use_template` makes a chat of every example;
    `language` leaves out lines whose "langdetect" is another."""
    if not line.strip():
        return None
    raw = parse_json(line, origin)
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: is no JSON object")
    if language and raw.get("langdetect") != language:
        return OtherLanguage()
    forms = [name for name in ("prompt", "messages", "conversations")
             if name in raw]
    if len(forms) != 1:
        raise UserError(f"{origin}: must have one of prompt (and answer), "
                        "messages, conversations")
    if forms[0] != "prompt":
        return Example(origin, messages=_messages(raw[forms[0]], forms[0],
                                                  origin))
    prompt = _text(raw, "prompt", origin)
    answer = _text(raw, "answer", origin)
    if not answer.strip():
        raise UserError(f"{origin}: answer is empty")
    if not use_template:
        return Example(origin, prompt, answer)
    return Example(origin, messages=(
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer}))


def _text(raw: Dict[str, Any], name: str, origin: str) -> str:
    if name not in raw:
        raise UserError(f"{origin}: {name} is missing")
    text = raw[name]
    if not isinstance(text, str):
        raise UserError(f"{origin}: {name} must be a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{origin}: {name} has a lone surrogate") from None
    return text


def _messages(raw: Any, form: str, origin: str) -> Tuple[Message, ...]:
    role_name, text_name = (("role", "content") if form == "messages"
                            else ("from", "value"))
    if not isinstance(raw, list) or not 2 <= len(raw) <= MAX_MESSAGES:
        raise UserError(f"{origin}: {form} must be a list of 2 to "
                        f"{MAX_MESSAGES} messages")
    messages: List[Message] = []
    for number, message in enumerate(raw, start=1):
        where = f"{origin}: message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{where}: is no object")
        role = _ROLES.get(_text(message, role_name, where))
        if role is None:
            raise UserError(f"{where}: {role_name} must be one of "
                            f"{', '.join(_ROLES)}")
        text = _text(message, text_name, where)
        if role == "assistant":
            if not any(m["role"] == "user" for m in messages):
                raise UserError(f"{where}: an answer without a question")
            if not text.strip():
                raise UserError(f"{where}: the answer is empty")
        messages.append({"role": role, "content": text})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # a question without an answer teaches nothing
    if not messages:
        raise UserError(f"{origin}: {form} holds no answer")
    return tuple(messages)


class _Split(NamedTuple):
    """One answer of a chat, as text."""

    prompt: str       # all of it
    new: str          # its part after the split before; all, where a row
    continues: bool   # cannot go on
    answer: str


def _splits(tokenizer: Tokenizer, example: Example) -> List[_Split]:
    splits: List[_Split] = []
    before = ""
    for at, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        try:
            prompt = tokenizer.render_chat(example.messages[:at], True)
            whole = tokenizer.render_chat(example.messages[:at + 1], False)
        except UserError as error:
            raise UserError(f"{example.origin}: {error}") from None
        if not whole.startswith(prompt) or len(whole) == len(prompt):
            raise UserError(
                f"{example.origin}: message {at + 1}: the chat template does "
                "not put the answer after its own generation prompt")
        # Some templates write earlier turns in another way than the last one
        # (without its reasoning, say): then a new row begins.
        continues = bool(before) and prompt.startswith(before)
        splits.append(_Split(prompt, prompt[len(before):] if continues
                             else prompt, continues, whole[len(prompt):]))
        before = whole
    return splits


def end_id(tokenizer: Tokenizer, where: str) -> int:
    """The token after an answer: one at which the server stops."""
    if tokenizer.eos_id is not None and (
            not tokenizer.eos_ids or tokenizer.eos_id in tokenizer.eos_ids):
        return tokenizer.eos_id
    if not tokenizer.eos_ids:
        raise UserError(f"{where}: states no EOS token")
    return tokenizer.eos_ids[0]


def encode(
    tokenizer: Tokenizer, examples: Sequence[Example]
) -> List[Tuple[int, Row]]:
    """(index of the example, row) of each row, in order."""
    try:
        return _encode(tokenizer, examples)
    except UserError as error:
        if len(examples) == 1:
            origin = examples[0].origin
            if str(error).startswith(origin):
                raise
            raise UserError(f"{origin}: {error}") from None
    # One by one, to name the line that it is.
    return [(index, row) for index, example in enumerate(examples)
            for _, row in encode(tokenizer, [example])]


def _encode(
    tokenizer: Tokenizer, examples: Sequence[Example]
) -> List[Tuple[int, Row]]:
    end = end_id(tokenizer, "the tokenizer")
    splits = [_splits(tokenizer, example) for example in examples]
    plain = [e for e in examples if not e.messages]
    prompts = iter(tokenizer.encode_all(
        [e.prompt for e in plain], add_bos=True, parse_special=False))
    answers = iter(tokenizer.encode_all(
        [e.answer for e in plain], add_bos=False, parse_special=False))
    pieces = iter(tokenizer.encode_all(
        [text for of_one in splits for split in of_one
         for text in (split.new, split.answer)],
        add_bos=False, parse_special=True))
    rows: List[Tuple[int, Row]] = []
    for index, example in enumerate(examples):
        if not example.messages:
            prompt, answer = next(prompts), next(answers) + [end]
            made = [Row(prompt + answer, [(len(prompt), len(answer))])]
        else:
            made = _chat_rows(tokenizer, splits[index],
                              [(next(pieces), next(pieces))
                               for _ in splits[index]], end)
        for row in made:
            if row.answers[0][0] == 0:
                raise UserError(f"{example.origin}: the prompt is empty")
            rows.append((index, row))
    return rows


def _chat_rows(
    tokenizer: Tokenizer, splits: Sequence[_Split],
    pieces: Sequence[Tuple[List[int], List[int]]], end: int,
) -> List[Row]:
    ends = set(tokenizer.eos_ids) | {end}
    rows: List[Row] = []
    tail: Optional[List[int]] = None  # what the template puts after an answer
    for split, (prompt, answer) in zip(splits, pieces):
        if split.continues and tail is not None:
            rows[-1].ids.extend(tail + prompt)
        else:
            if split.continues:  # after an answer that has no end of its own
                prompt = tokenizer.encode_all(
                    [split.prompt], add_bos=False, parse_special=True)[0]
            rows.append(Row(list(prompt), []))
        stop = next((at for at, token in enumerate(answer)
                     if token in ends), None)
        tail = None if stop is None else answer[stop + 1:]
        answer = answer + [end] if stop is None else answer[:stop + 1]
        rows[-1].answers.append((len(rows[-1].ids), len(answer)))
        rows[-1].ids.extend(answer)
    return rows


def cut(row: Row, most: int) -> Optional[Row]:
    """At most `most` tokens: the end is cut off, and the answers in it; None
    where no answer begins before it. An answer that is cut is learned as far
    as it goes."""
    if len(row.ids) <= most:
        return row
    answers = [(start, min(length, most - start))
               for start, length in row.answers if start < most]
    return Row(row.ids[:most], answers) if answers else None

"""What an expression of PromQL names: metrics, labels and their values.

Enough of the grammar for the rules and the dashboard; what it does not know
is an error, not a guess.
"""

import dataclasses
import re
from typing import Dict, Iterator, List, Set, Tuple

_TOKEN = re.compile(r"""
    (?P<space>\s+|\#[^\n]*)
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<range>\[[^\]]*\])
  | (?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?(?![\w:]))
  | (?P<duration>(?:\d+(?:ms|[smhdwy]))+(?![\w:]))
  | (?P<name>[a-zA-Z_:][\w:]*)
  | (?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^<>=(){},@])
""", re.VERBOSE | re.IGNORECASE)

_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"}


class PromqlError(Exception):
    pass


@dataclasses.dataclass
class Selector:
    """METRIC{label OP "value", ...}"""
    metric: str
    matchers: List[Tuple[str, str, str]] = dataclasses.field(
        default_factory=list)

    def __str__(self) -> str:
        inside = ",".join(f'{label}{op}"{value}"'
                          for label, op, value in self.matchers)
        return f"{self.metric}{{{inside}}}"


@dataclasses.dataclass
class Names:
    selectors: List[Selector] = dataclasses.field(default_factory=list)
    grouping: Set[str] = dataclasses.field(default_factory=set)

    @property
    def metrics(self) -> Set[str]:
        return {selector.metric for selector in self.selectors}


def _tokens(text: str) -> Iterator[Tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise PromqlError(f"at {text[position:position + 20]!r}: {text}")
        position = match.end()
        if match.lastgroup != "space":
            yield match.lastgroup, match.group()
    yield "end", ""


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    def peek(self) -> str:
        return self._tokens[self._next][1]

    def take(self, *kinds: str) -> str:
        kind, text = self._tokens[self._next]
        if kinds and kind not in kinds and text not in kinds:
            raise PromqlError(f"{text!r} where {kinds} should be")
        self._next += 1
        return text

    def at_end(self) -> bool:
        return self._tokens[self._next][0] == "end"

    def kind(self) -> str:
        return self._tokens[self._next][0]


def _matchers(reader: _Reader) -> Iterator[Tuple[str, str, str]]:
    reader.take("{")
    while reader.peek() != "}":
        label = reader.take("name")
        operator = reader.take("=", "!=", "=~", "!~")
        yield label, operator, reader.take("string")[1:-1]
        if reader.peek() != "}":
            reader.take(",")
    reader.take("}")


def _label_list(reader: _Reader) -> Iterator[str]:
    reader.take("(")
    while reader.peek() != ")":
        yield reader.take("name")
        if reader.peek() != ")":
            reader.take(",")
    reader.take(")")


def names(text: str) -> Names:
    """The selectors of an expression, in order, and its labels to group by."""
    reader, found = _Reader(text), Names()
    while not reader.at_end():
        if reader.peek() == "{":
            raise PromqlError(f"a selector without a metric: {text}")
        if reader.kind() != "name":
            reader.take()
            continue
        word = reader.take()
        if word.lower() in _GROUPING:
            if reader.peek() == "(":
                found.grouping.update(_label_list(reader))
        elif reader.peek() == "(" or word.lower() in _WORDS:
            pass  # a function, an aggregation or an operator
        elif reader.peek().lower() in ("by", "without"):
            pass  # sum by (...) (...)
        else:
            selector = Selector(word)
            if reader.peek() == "{":
                selector.matchers.extend(_matchers(reader))
            found.selectors.append(selector)
    return found


def base_metric(metric: str, types: Dict[str, str]) -> str:
    """The exported family that a series belongs to; "" if none does."""
    if metric in types:
        return metric
    for suffix in ("_bucket", "_sum", "_count"):
        family = metric.removesuffix(suffix)
        if family != metric and types.get(family) in ("histogram", "summary"):
            return family
    return ""


def alternatives(operator: str, value: str) -> List[str]:
    """The values that a matcher names one by one; those that it describes by a
    pattern, or leaves out, are not among them."""
    if operator == "=":
        return [value] if value else []
    if operator != "=~":
        return []
    parts = value.split("|")
    return [part for part in parts if re.fullmatch(r"[\w./-]+", part)]

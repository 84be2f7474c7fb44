"""JSON files, of others and our own."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from typing import Any, Dict, List, NoReturn, Tuple

from training.errors import UserError

MAX_JSON_BYTES = 16 << 20


def parse_json(data: bytes, origin: str) -> Any:
    """Strict: UTF-8, no NaN, no name twice in one object."""
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    def unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = collections.Counter(name for name, _ in pairs)
            twice = names.most_common(1)[0][0]
            raise ValueError(f"{twice[:200]!r} comes twice")
        return result

    try:
        return json.loads(data.decode("utf-8"), parse_constant=no_constant,
                          object_pairs_hook=unique)
    except RecursionError:
        raise UserError(f"{origin}: JSON is nested too deeply") from None
    except ValueError as error:  # of json, of the decoder, of the above
        raise UserError(f"{origin}: not valid JSON: {error}") from None


def read_json(path: pathlib.Path, most: int = MAX_JSON_BYTES) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(data) > most:
        raise UserError(f"{path}: is larger than {most} bytes")
    return parse_json(data, str(path))


def write_json(path: pathlib.Path, data: Any) -> None:
    """The file is there whole or not at all."""
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, from someone's escape
        text = json.dumps(data, indent=2).encode("ascii")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text + b"\n")
    os.replace(partial, path)

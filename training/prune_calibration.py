"""Calibration files: text, or token ids, to rows of ids.

Text becomes one stream of ids (documents of a .jsonl are joined by an empty
line). Each row begins as a prompt does, with the tokenizer's BOS token where
it has one, and goes on with the next piece of the stream.
"""

from __future__ import annotations

import itertools
import pathlib
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np

from training.errors import UserError
from training.json_file import parse_json, read_json

_MAX_LINE_BYTES = 64 << 20
_MAX_IDS_BYTES = 256 << 20
_PIECE_CHARACTERS = 1 << 18


def read_rows(
    path: pathlib.Path, model: pathlib.Path, vocab_size: int,
    num_rows: int, num_tokens: int,
) -> List[List[int]]:
    """At most `num_rows` rows, at least one, of `num_tokens` each; `model` is
    the folder of the tokenizer."""
    if path.suffix in (".npy", ".json"):
        rows = _rows_of_ids(path, num_rows, num_tokens)
    else:
        rows = _rows_of_text(path, model, num_rows, num_tokens)
    for number, row in enumerate(rows):
        if min(row) < 0 or max(row) >= vocab_size:
            raise UserError(f"{path}: row {number} has ids from {min(row)} to "
                            f"{max(row)}, the vocabulary {vocab_size}")
    return rows


def _too_short(path: pathlib.Path, needed: int, found: int) -> UserError:
    return UserError(f"{path}: is too short: a sample takes {needed} tokens, "
                     f"it has {found}")


def _rows_of_text(
    path: pathlib.Path, model: pathlib.Path, num_rows: int, num_tokens: int
) -> List[List[int]]:
    from training import text_tokenizer  # starts a program of its own

    tokenizer = text_tokenizer.load(model)
    start = tokenizer.encode("", add_bos=True)[:1]
    fresh = num_tokens - len(start)
    if fresh < 1:
        raise UserError(f"--sample-tokens {num_tokens}: is too few")
    stream: List[int] = []
    rows: List[List[int]] = []
    for piece in _pieces(path):
        stream += tokenizer.encode(piece, add_bos=False)
        while len(stream) >= fresh and len(rows) < num_rows:
            rows.append(start + stream[:fresh])
            stream = stream[fresh:]
        if len(rows) == num_rows:
            break
    if not rows:
        raise _too_short(path, num_tokens, len(start) + len(stream))
    return rows


def _pieces(path: pathlib.Path) -> Iterator[str]:
    """The text, in pieces that end at an empty line or at least at a line's
    end, where no tokenizer joins what is before with what follows."""
    if path.suffix == ".jsonl":
        yield from _documents(path)
        return
    held: List[str] = []
    size = 0
    for _, line in _lines(path):
        # A run of empty lines stays in one piece.
        if size >= _PIECE_CHARACTERS and line.strip():
            if not held[-1].strip() or size >= 4 * _PIECE_CHARACTERS:
                yield "".join(held)
                held, size = [], 0
        held.append(line)
        size += len(line)
    yield "".join(held)


def _documents(path: pathlib.Path) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        data = parse_json(line.encode("utf-8"), where)
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise UserError(f'{where}: must be an object with a "text"')
        yield text + "\n\n"


def _lines(path: pathlib.Path) -> Iterator[Tuple[int, str]]:
    """Lines with their ends, counted from 1."""
    with _open(path) as file:
        for number in itertools.count(1):
            line = file.readline(_MAX_LINE_BYTES)
            if not line:
                return
            if len(line) == _MAX_LINE_BYTES:
                raise UserError(f"{path}:{number}: is a line of over "
                                f"{_MAX_LINE_BYTES} bytes")
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: is not UTF-8") from None


def _open(path: pathlib.Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _rows_of_ids(
    path: pathlib.Path, num_rows: int, num_tokens: int
) -> List[List[int]]:
    stored = _read_npy(path) if path.suffix == ".npy" else _read_ids(path)
    if stored and isinstance(stored[0], int):  # one stream
        rows = [list(stored[at:at + num_tokens])
                for at in range(0, len(stored) - num_tokens + 1, num_tokens)]
        if not rows:
            raise _too_short(path, num_tokens, len(stored))
        return rows[:num_rows]
    rows = [list(row[:num_tokens]) for row in stored[:num_rows]]
    if not rows:
        raise _too_short(path, num_tokens, 0)
    for row in rows:
        if len(row) < num_tokens:
            raise _too_short(path, num_tokens, len(row))
    return rows


def _read_npy(path: pathlib.Path) -> Sequence[Any]:
    try:
        # Mapped: a header that promises more than there is allocates nothing.
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except Exception:  # numpy's parser has no exception of its own
        raise UserError(f"{path}: is no .npy file of numbers") from None
    if (not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu"
            or ids.ndim not in (1, 2) or ids.nbytes > _MAX_IDS_BYTES):
        raise UserError(f"{path}: must be one or two dimensions of integers, "
                        f"{_MAX_IDS_BYTES} bytes at most")
    return ids.tolist()


def _read_ids(path: pathlib.Path) -> Sequence[Any]:
    stored = read_json(path, _MAX_IDS_BYTES)

    def is_row(value: Any) -> bool:
        return isinstance(value, list) and all(
            type(token) is int for token in value)

    if is_row(stored) or isinstance(stored, list) and all(
            is_row(row) for row in stored):
        return stored
    raise UserError(f"{path}: must be a list of ids, or of rows of ids")

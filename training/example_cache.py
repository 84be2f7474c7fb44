"""Training data as token rows on disk, read through memory maps.

A file is tokenised once, a chunk of lines at a time, into a folder named by
what its content depends on: the data, the tokenizer and the options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from typing import (
    BinaryIO, Callable, Dict, Iterator, List, Sequence, Tuple)

import numpy as np
import torch

from training import examples
from training.checkpoint import sha256_of
from training.errors import UserError
from training.text_tokenizer import TextTokenizer
from training.two_stage import Answer, Batch

_CHUNK_LINES = 256
_LOG_LINES = 100_000
_VERSION = 1
# Columns of a row: its first id, ids, first answer, answers, and line.
_COLUMNS = 5


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How lines become rows."""

    sequence_tokens: int
    use_template: bool = False  # for prompt/answer lines; chats always
    language: str = ""          # only lines whose "langdetect" is this


class Rows:
    """The rows of one cache."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.counts: Dict[str, int] = json.loads(
            (folder / "complete.json").read_text(encoding="utf-8"))
        self._ids = _map(folder / "ids.bin", np.int32)
        self._rows = _map(folder / "rows.bin", np.int64).reshape(
            -1, _COLUMNS)
        self._answers = _map(folder / "answers.bin", np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> np.ndarray:
        return self._rows[:, 1]

    @property
    def lines(self) -> np.ndarray:
        return self._rows[:, 4]

    def __getitem__(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """ids, and answers [num_answers, (start, length)]."""
        first, count, answer, num_answers, _ = self._rows[index]
        return (self._ids[first:first + count],
                self._answers[answer:answer + num_answers])

    def batch(self, indices: Sequence[int], pad_id: int) -> Batch:
        rows = [self[index] for index in indices]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), pad_id)
        answers: List[Answer] = []
        for at, (row, spans) in enumerate(rows):
            ids[at, :len(row)] = torch.from_numpy(row.astype(np.int64))
            answers += [Answer(at, int(start), int(length))
                        for start, length in spans]
        return Batch(ids, torch.arange(width).repeat(len(rows), 1), answers)


def _map(path: pathlib.Path, dtype: type) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def cache_folder(
    run: pathlib.Path, data: pathlib.Path, tokenizer: TextTokenizer,
    tokenizer_folder: pathlib.Path, encoding: Encoding,
) -> pathlib.Path:
    """Where in the run's folder the rows of this data are or will be."""
    key = hashlib.sha256()
    parts = [str(_VERSION), _data_digest(data), tokenizer.digest,
             repr(tokenizer.eos_ids), repr(encoding)]
    for name in ("tokenizer_config.json", "chat_template.jinja",
                 "chat_template.json"):
        path = tokenizer_folder / name
        parts.append(sha256_of(path) if path.is_file() else "absent")
    for part in parts:
        key.update(part.encode("utf-8") + b"\0")
    return run / f"tokens-{key.hexdigest()[:24]}"


def _data_digest(data: pathlib.Path) -> str:
    try:
        if not data.is_file():
            raise UserError(f"{data}: no such file")
        return sha256_of(data)
    except OSError as error:
        raise UserError(f"{data}: {error.strerror}") from None


def build(
    folder: pathlib.Path, data: pathlib.Path, tokenizer: TextTokenizer,
    encoding: Encoding, log: Callable[[str], None],
) -> None:
    """Makes the cache unless it is there; half of one never is."""
    if (folder / "complete.json").exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = _write_rows(partial, data, tokenizer, encoding, log)
        (partial / "complete.json").write_text(
            json.dumps(counts), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_rows(
    folder: pathlib.Path, data: pathlib.Path, tokenizer: TextTokenizer,
    encoding: Encoding, log: Callable[[str], None],
) -> Dict[str, int]:
    counts = dict.fromkeys(
        ("lines", "other_language", "rows", "answers", "tokens",
         "answer_tokens", "cut", "dropped"), 0)
    with (folder / "ids.bin").open("wb") as ids_file, \
            (folder / "rows.bin").open("wb") as rows_file, \
            (folder / "answers.bin").open("wb") as answers_file, \
            data.open("rb") as file:
        for chunk in _chunks(file, data, encoding, counts, log):
            numbers, parsed = zip(*chunk)
            for index, whole in examples.encode(tokenizer, parsed):
                row = examples.cut(whole, encoding.sequence_tokens)
                if row is None:
                    counts["dropped"] += 1
                    continue
                counts["cut"] += row is not whole
                np.asarray([counts["tokens"], len(row.ids), counts["answers"],
                            len(row.answers), numbers[index]],
                           dtype=np.int64).tofile(rows_file)
                np.asarray(row.ids, dtype=np.int32).tofile(ids_file)
                np.asarray(row.answers, dtype=np.int32).tofile(answers_file)
                counts["rows"] += 1
                counts["tokens"] += len(row.ids)
                counts["answers"] += len(row.answers)
                counts["answer_tokens"] += sum(n for _, n in row.answers)
    if counts["rows"] == 0:
        raise UserError(
            f"{data}: no example is left of {counts['lines']} lines "
            f"({counts['dropped']} prompts alone have more than "
            f"{encoding.sequence_tokens} tokens)")
    return counts


def _chunks(
    file: BinaryIO, data: pathlib.Path, encoding: Encoding,
    counts: Dict[str, int], log: Callable[[str], None],
) -> Iterator[List[Tuple[int, examples.Example]]]:
    """Lists of line number and example, never many at once."""
    chunk: List[Tuple[int, examples.Example]] = []
    held = number = 0
    while line := file.readline(examples.MAX_LINE_BYTES + 1):
        number += 1
        origin = f"{data}:{number}"
        if len(line) > examples.MAX_LINE_BYTES:
            raise UserError(f"{origin}: the line is longer than "
                            f"{examples.MAX_LINE_BYTES} bytes")
        example = examples.parse_line(
            line, origin, encoding.use_template, encoding.language)
        counts["lines"] += example is not None
        if isinstance(example, examples.OtherLanguage):
            counts["other_language"] += 1
        elif example is not None:
            chunk.append((number, example))
            held += len(line)
        if number % _LOG_LINES == 0:
            log(f"{data}: {number} lines tokenised")
        if len(chunk) == _CHUNK_LINES or held > examples.MAX_LINE_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def split_lines(
    rows: Rows, share: float, seed: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on, and held out: a share of the lines."""
    lines = np.unique(rows.lines)
    count = 0 if share == 0 else max(1, round(share * len(lines)))
    if count >= len(lines):
        raise UserError(f"of {len(lines)} lines, a --dev-share of {share} "
                        "leaves none to train on")
    chosen = np.random.default_rng((seed, 1)).permutation(lines)[:count]
    held_out = np.isin(rows.lines, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class Sampler:
    """batch_at for the trainer: every epoch in another order, a function of
    the seed. The last step of a run goes on into the next epoch's order."""

    def __init__(
        self, rows: Rows, indices: np.ndarray, seed: int, batch_size: int,
        micro_batch: int, world: int, pad_id: int,
    ) -> None:
        self._rows = rows
        self._indices = indices
        self._seed = seed
        self._batch_size = batch_size
        self._micro_batch = micro_batch
        self._world = world
        self._pad_id = pad_id
        self._epoch = -1
        self._order = indices
        self._step = -1
        self._of_step = indices

    def num_steps(self, epochs: float) -> int:
        return max(1, int(np.ceil(
            epochs * len(self._indices) / self._batch_size)))

    def _row_at(self, number: int) -> int:
        epoch, at = divmod(number, len(self._indices))
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, 2, epoch))
            self._epoch, self._order = epoch, rng.permutation(self._indices)
        return int(self._order[at])

    def step_rows(self, step: int) -> np.ndarray:
        """The global batch, like lengths together: less padding."""
        if step != self._step:
            first = step * self._batch_size
            chosen = np.array([self._row_at(first + at)
                               for at in range(self._batch_size)])
            lengths = self._rows.lengths[chosen]
            self._of_step = chosen[np.argsort(-lengths, kind="stable")]
            self._step = step
        return self._of_step

    def batch_at(self, step: int, micro: int, rank: int) -> Batch:
        begin = (micro * self._world + rank) * self._micro_batch
        chosen = self.step_rows(step)[begin:begin + self._micro_batch]
        return self._rows.batch(chosen, self._pad_id)


class DevBatches(Sequence[Batch]):
    """Held-out rows, made into batches as they are asked for."""

    def __init__(self, rows: Rows, indices: np.ndarray, micro_batch: int,
                 pad_id: int) -> None:
        order = np.argsort(-rows.lengths[indices], kind="stable")
        self._rows = rows
        self._indices = indices[order]
        self._micro_batch = micro_batch
        self._pad_id = pad_id

    def __len__(self) -> int:
        return -(-len(self._indices) // self._micro_batch)

    def __getitem__(self, index: int) -> Batch:
        begin = index * self._micro_batch
        chosen = self._indices[begin:begin + self._micro_batch]
        return self._rows.batch(chosen, self._pad_id)

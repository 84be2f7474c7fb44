"""What a run reports: rows of CSV, TensorBoard, lines or a progress bar."""

from __future__ import annotations

import pathlib
import sys
from typing import Any, Callable, Dict, List, Optional, Union

from training.errors import UserError

COLUMNS = ("step", "loss", "ce", "kl", "accuracy", "exact", "lr", "grad_norm",
           "tokens", "seconds", "dev_loss", "dev_ce", "dev_kl",
           "dev_accuracy", "dev_exact")

Row = Dict[str, Union[int, float]]
Log = Callable[[str], None]


def read_rows(path: pathlib.Path) -> List[Row]:
    """The whole rows of a metrics file; absent values are left out."""
    rows: List[Row] = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for line in lines[1:]:
        cells = line.rstrip("\n").split(",")
        if not line.endswith("\n") or len(cells) != len(COLUMNS):
            break  # the writer was killed here
        rows.append({name: int(cell) if name in ("step", "tokens")
                     else float(cell)
                     for name, cell in zip(COLUMNS, cells) if cell})
    return rows


class Csv:
    """One row per step, whole once written. Floats are exact (repr)."""

    def __init__(self, path: pathlib.Path, last_step: int) -> None:
        """Keeps the rows up to `last_step` of an interrupted run; -1: none."""
        kept: List[Row] = []
        try:
            if last_step >= 0 and path.exists():
                kept = [row for row in read_rows(path)
                        if row["step"] <= last_step]
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            with partial.open("w", encoding="utf-8") as file:
                file.write(",".join(COLUMNS) + "\n")
                file.writelines(_line(row) for row in kept)
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: cannot be written as metrics: "
                            f"{error}") from error

    def write(self, row: Row) -> None:
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(row: Row) -> str:
    cells = (repr(row[name]) if name in row else "" for name in COLUMNS)
    return ",".join(cells) + "\n"


def tensorboard_writer(folder: pathlib.Path, step: int) -> Any:
    """Rows from `step` on of an earlier run are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            f"{folder}: TensorBoard is not installed; --metrics FILE.csv "
            "holds the same numbers") from None
    return SummaryWriter(str(folder), purge_step=step + 1)


class Reporter:
    """All of these for one process; ranks above 0 report nothing."""

    def __init__(
        self, num_steps: int, step: int, log: Log, log_steps: int,
        metrics: Optional[pathlib.Path], tensorboard: Optional[pathlib.Path],
    ) -> None:
        self._log = log
        self._log_steps = log_steps
        self._num_steps = num_steps
        last_step = step if step > 0 else -1
        self._board = (tensorboard_writer(tensorboard, step)
                       if tensorboard else None)
        self._csv = Csv(metrics, last_step) if metrics else None
        self._bar = _progress_bar(num_steps, step)

    def row(self, row: Row) -> None:
        if self._csv:
            self._csv.write(row)
        step = int(row["step"])
        if self._board:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        text = " ".join(
            f"{name} {row[name]:.4g}" for name in
            ("loss", "accuracy", "exact", "lr", "dev_loss", "dev_exact")
            if name in row)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text)
        elif (step % self._log_steps == 0 or step == self._num_steps
              or "dev_loss" in row):
            self._log(f"step {step}/{self._num_steps} {text} "
                      f"seconds {row['seconds']:.0f}")

    def close(self) -> None:
        for part in (self._csv, self._board, self._bar):
            if part is not None:
                part.close()


def _progress_bar(num_steps: int, step: int) -> Any:
    """tqdm's, where a person looks on and it is installed."""
    if not sys.stderr.isatty():
        return None
    try:
        import tqdm
    except ImportError:
        return None
    return tqdm.tqdm(total=num_steps, initial=step, unit="step")

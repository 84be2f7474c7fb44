"""Checkpoints of a training run: whole or not there.

RUN/step-00000120/ holds state.pt, which has the tensors alone, and
complete.json, which has all else and state.pt's size and SHA-256. It is
written beside its place and renamed, and a checkpoint whose digest is wrong is
passed over for the one before it. Two are kept.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from training.checkpoint import sha256_of
from training.errors import UserError

KEPT = 2
_PREFIX = "step-"
_PARTIAL = ".partial-step"


def _sync(path: pathlib.Path) -> None:
    """To disk: a rename must not come there before what it renames."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoints:
    """Those of one run, in its folder."""

    def __init__(self, folder: pathlib.Path, log: Callable[[str], None]
                 ) -> None:
        self.folder = folder
        self._log = log

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / f"{_PREFIX}{step:08d}"

    def _steps(self) -> List[int]:
        """Ascending."""
        if not self.folder.is_dir():
            return []
        names = [path.name[len(_PREFIX):] for path in self.folder.iterdir()
                 if path.name.startswith(_PREFIX)]
        return sorted(int(name) for name in names if name.isdigit())

    def save(
        self, step: int, tensors: Dict[str, Any], values: Dict[str, Any],
        arguments: Dict[str, Any],
    ) -> None:
        """`tensors`: dicts of them. `values`: what JSON can hold. `arguments`:
        what the run is of; it goes on only with equal ones."""
        partial = self.folder / _PARTIAL
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            torch.save(tensors, partial / "state.pt")
            _sync(partial / "state.pt")
            text = json.dumps({
                "step": step, "bytes": (partial / "state.pt").stat().st_size,
                "sha256": sha256_of(partial / "state.pt"),
                "arguments": arguments, "values": values}, indent=1)
            (partial / "complete.json").write_text(text, encoding="utf-8")
            _sync(partial / "complete.json")
            shutil.rmtree(self._path(step), ignore_errors=True)
            partial.rename(self._path(step))
            _sync(self.folder)
        except OSError as error:
            raise UserError(f"{self._path(step)}: cannot be written: "
                            f"{error.strerror or error}") from error
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def clear(self) -> None:
        """For a run that starts over: of two runs' checkpoints, those of more
        steps would be kept."""
        for step in self._steps():
            shutil.rmtree(self._path(step), ignore_errors=True)

    def newest(self) -> Optional[int]:
        """The last step that was saved whole; broken ones are removed."""
        for step in reversed(self._steps()):
            problem = self._problem(step)
            if problem is None:
                return step
            self._log(f"{self._path(step)}: {problem}; passed over")
            shutil.rmtree(self._path(step), ignore_errors=True)
        return None

    def _marker(self, step: int) -> Dict[str, Any]:
        path = self._path(step) / "complete.json"
        marker = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(marker, dict):
            raise ValueError("complete.json is no object")
        return marker

    def _problem(self, step: int) -> Optional[str]:
        path = self._path(step) / "state.pt"
        try:
            marker = self._marker(step)
            if marker.get("step") != step:
                return "complete.json is of another step"
            if path.stat().st_size != marker.get("bytes"):
                return "state.pt is cut short"
            if sha256_of(path) != marker.get("sha256"):
                return "state.pt is not what was written"
        except (OSError, ValueError) as error:
            return f"half-written ({type(error).__name__})"
        return None

    def arguments(self, step: int) -> Dict[str, Any]:
        return self._marker(step)["arguments"]

    def load(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """The tensors and the values."""
        tensors = torch.load(self._path(step) / "state.pt",
                             map_location="cpu", weights_only=True)
        return tensors, self._marker(step)["values"]


def check_arguments(
    folder: pathlib.Path, then: Dict[str, Any], now: Dict[str, Any]
) -> None:
    """A run goes on only as what it began as."""
    now = json.loads(json.dumps(now))
    for name in sorted(set(then) | set(now)):
        if then.get(name) != now.get(name):
            raise UserError(
                f"{folder}: this run began with {name} {then.get(name)}, not "
                f"{now.get(name)}; give it again, or start over with "
                "--resume never")

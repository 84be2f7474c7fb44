"""overfill.json: what a pair is made of, for the server to check.

It lies in the decode model's folder: which channels and layers of the full
model it was cut from, and the digests of both models' files.
"""

from __future__ import annotations

import pathlib
from typing import Any, Dict, List, Optional

from training import checkpoint
from training.errors import UserError
from training.prune_choice import Kept
from training.safetensors_file import TensorReader

FILE_NAME = "overfill.json"
_FORMAT = "overfill-pair"
_VERSION = 1


def write(
    decode: pathlib.Path, full: pathlib.Path, kept: Optional[Kept],
    layer_map: List[int], kv_map: str, decode_name: Optional[str] = None,
) -> None:
    """`kept` None: not known. `decode` may not have its own name yet: then
    `decode_name` is it."""
    checkpoint.write_json(decode / FILE_NAME, {
        "format": _FORMAT, "version": _VERSION, "kv_map": kv_map,
        "layer_map": layer_map,
        "kept_hidden": kept.hidden if kept else None,
        "kept_intermediate": kept.intermediate if kept else None,
        "full": describe(full), "decode": describe(decode, decode_name)})


def refresh(decode: pathlib.Path) -> None:
    """After the decode model's files have changed: their digests anew."""
    stated = read(decode)
    stated["decode"] = describe(decode, stated["decode"].get("name"))
    checkpoint.write_json(decode / FILE_NAME, stated)


def read(decode: pathlib.Path) -> Dict[str, Any]:
    path = decode / FILE_NAME
    stated = checkpoint.read_json(path)
    if not isinstance(stated, dict) or stated.get("format") != _FORMAT:
        raise UserError(f"{path}: format must be {_FORMAT!r}")
    if stated.get("version") != _VERSION:
        raise UserError(f"{path}: version must be {_VERSION}")
    for half in ("full", "decode"):
        if not isinstance(stated.get(half), dict):
            raise UserError(f"{path}: {half} must be an object")
    return stated


def describe(
    folder: pathlib.Path, name: Optional[str] = None
) -> Dict[str, Any]:
    """A model by its sizes and the SHA-256 of its files."""
    config, _ = checkpoint.read_config(folder)
    weights = TensorReader(folder)
    files = [folder / "config.json", folder / "tokenizer.json",
             weights.origin, *weights.files]
    return {
        "name": name or folder.resolve().name,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "files": {path.name: checkpoint.sha256_of(path)
                  for path in sorted(set(files)) if path.is_file()},
    }

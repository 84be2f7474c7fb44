"""The paper's training output as a pair that the server serves.

    python -m training.import_overfill --state FILE_OR_DIR --full DIR --out DIR
        [--layers first|last|firstlast|0,2,5]

The paper's code saves one state dict with both models and the KV projection:
`teacher.*`, `student.*` and, with its kv_proj_layer, `embedding_proj.L.weight`
and `.bias`, one linear map per layer for K and V alike. It saves no config of
the student: tensors' shapes give its widths, the full model's config the rest.
A state without those prefixes, as the released decoders are, is a student.

OUT gets `full` and `decode`, the latter with a `kv_map.json` where the map is
not the identity.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import shutil
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch

from training import checkpoint, kv_map, manifest, prune_choice
from training.errors import Parser, UserError, main_of
from training.kv_map import KvMap, Projection
from training.model_config import ModelConfig, parse_config
from training.prune_cut import cut_stated
from training.safetensors_file import Spec, TensorReader, write_tensors
from training.torch_file import StateReader, open_state

TEACHER, STUDENT, PROJECTION = "teacher", "student", "embedding_proj"
_PARTS = (TEACHER, STUDENT, PROJECTION)
_LAYER = re.compile(r"model\.layers\.([0-9]{1,4})\.")


class Part:
    """The tensors of one prefix, by their names without it."""

    def __init__(self, reader: StateReader, prefix: str) -> None:
        self._reader = reader
        self._stored: Dict[str, str] = {}
        self.origin = (f"{reader.origin}: {prefix}" if prefix
                       else str(reader.origin))

    def add(self, name: str, stored: str) -> None:
        if name in self._stored:
            raise UserError(f"{self._reader.origin}: tensors "
                            f"{self._stored[name][:200]!r} and "
                            f"{stored[:200]!r} are one name")
        self._stored[name] = stored

    def names(self) -> List[str]:
        return list(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def file(self, name: str) -> str:
        return self.origin

    def _named(self, name: str) -> str:
        if name not in self._stored:
            raise UserError(f"{self.origin}: tensor {name[:200]!r} is missing")
        return self._stored[name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return self._reader.shape(self._named(name))

    def dtype(self, name: str) -> torch.dtype:
        return self._reader.dtype(self._named(name))

    def read(self, name: str,
             dtype: Optional[torch.dtype] = torch.float32) -> torch.Tensor:
        return self._reader.read(self._named(name), dtype)


def split_state(reader: StateReader) -> Dict[str, Part]:
    """By prefix; of wrappers' parts of a name, torch.compile's and data
    parallel's, nothing is left."""
    bare: Dict[str, str] = {}
    for stored in reader.names():
        name = stored.replace("_orig_mod.", "")
        while name.startswith("module."):
            name = name[len("module."):]
        if name in bare:
            raise UserError(f"{reader.origin}: tensors {bare[name][:200]!r} "
                            f"and {stored[:200]!r} are one name")
        bare[name] = stored
    if not any(name.startswith(f"{part}.") for name in bare
               for part in _PARTS):
        alone = Part(reader, "")
        for name, stored in bare.items():
            alone.add(name, stored)
        return {STUDENT: alone}
    parts: Dict[str, Part] = {}
    for name, stored in bare.items():
        prefix, _, rest = name.partition(".")
        if prefix not in _PARTS:
            raise UserError(f"{reader.origin}: tensor {stored[:200]!r}: its "
                            f"prefix is none of {', '.join(_PARTS)}")
        if rest.startswith("module."):
            rest = rest[len("module."):]
        parts.setdefault(prefix, Part(reader, prefix)).add(rest, stored)
    if STUDENT not in parts:
        raise UserError(f"{reader.origin}: has no tensors of the student")
    return parts


def _matrix(part: Part, name: str) -> Tuple[int, int]:
    shape = part.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{part.origin}: tensor {name!r} is {list(shape)}, "
                        "not a matrix")
    return shape[0], shape[1]


def student_config(
    student: Part, full: ModelConfig, raw: Dict[str, Any]
) -> Tuple[ModelConfig, Dict[str, Any]]:
    """`raw`: the full model's config.json."""
    _, hidden = _matrix(student, checkpoint.EMBEDDING)
    inner, _ = _matrix(student, "model.layers.0.mlp.gate_proj.weight")
    layers = {int(match[1]) for name in student.names()
              if (match := _LAYER.match(name))}
    if layers != set(range(len(layers))):
        raise UserError(f"{student.origin}: its layers are not 0 to "
                        f"{len(layers) - 1}")
    for what, size, most in (
            ("hidden_size", hidden, full.hidden_size),
            ("intermediate_size", inner, full.intermediate_size),
            ("num_hidden_layers", len(layers), full.num_hidden_layers)):
        if size > most:
            raise UserError(f"{student.origin}: {what} is {size} by its "
                            f"tensors, the full model's only {most}")
    config = dataclasses.replace(
        full, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=len(layers))
    # All layers are of one type, so the first ones stand for any.
    own = cut_stated(raw, config, list(range(len(layers))))
    return parse_config(own, student.origin), own


def parse_layers(text: str, count: int, num_layers: int) -> List[int]:
    """The paper's names, or the layers themselves."""
    if text in ("first", "last", "firstlast"):
        return prune_choice.choose_layers(text, count, [0.0] * num_layers)
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise UserError(f"--layers {text[:200]}: must be first, last, "
                        "firstlast or ascending numbers such as 0,2,5")
    layers = [int(number) for number in text.split(",")]
    if len(layers) != count or layers[-1] >= num_layers or any(
            a >= b for a, b in zip(layers, layers[1:])):
        raise UserError(f"--layers {text[:200]}: must be {count} ascending "
                        f"numbers below {num_layers}, one per layer of the "
                        "student")
    return layers


def equal_span(count: int, num_layers: int) -> List[int]:
    """The layers that the paper's code projects from."""
    if count >= num_layers:
        return list(range(num_layers))
    return [int(round(at)) for at in np.linspace(0, num_layers - 1, count)]


def choose_map(parts: Dict[str, Part], full: ModelConfig, student: ModelConfig,
               layers: Optional[str]) -> Optional[KvMap]:
    """None: identity."""
    count, num_layers = student.num_hidden_layers, full.num_hidden_layers
    chosen = (None if layers is None
              else parse_layers(layers, count, num_layers))
    if PROJECTION in parts:
        return read_projection(
            parts[PROJECTION], chosen or equal_span(count, num_layers), full,
            student)
    if count == num_layers:
        return None
    if chosen is None:
        raise UserError(
            f"{parts[STUDENT].origin}: has {count} of the full model's "
            f"{num_layers} layers and does not say which: name them with "
            "--layers")
    return KvMap(chosen)


def _check_projection(part: Part, student: ModelConfig) -> None:
    """Heads are never cut, so a map is square."""
    size = student.num_key_value_heads * student.head_dim
    want = {f"{layer}.{half}": shape
            for layer in range(student.num_hidden_layers)
            for half, shape in (("weight", (size, size)), ("bias", (size,)))}
    for name, shape in want.items():
        if part.shape(name) != shape:
            raise UserError(f"{part.origin}: tensor {name!r} is "
                            f"{list(part.shape(name))}, not {list(shape)}")
        part.dtype(name)
    for name in part.names():
        if name not in want:
            raise UserError(f"{part.origin}: tensor {name[:200]!r}: the "
                            "student has no such layer")


def read_projection(part: Part, layers: List[int], full: ModelConfig,
                    student: ModelConfig) -> Projection:
    """One map is both K's and V's."""
    _check_projection(part, student)
    result = Projection(layers, full, student, has_bias=True)
    with torch.no_grad():
        for layer in range(len(layers)):
            for half, maps in (("weight", (result.k, result.v)),
                               ("bias", (result.k_bias, result.v_bias))):
                tensor = part.read(f"{layer}.{half}")
                if not bool(torch.isfinite(tensor).all()):
                    raise UserError(f"{part.origin}: tensor '{layer}.{half}' "
                                    "is not finite")
                for of_layers in maps:
                    of_layers[layer].copy_(tensor)
    return result


def write_model(folder: pathlib.Path, part: Part, config: ModelConfig,
                raw: Dict[str, Any], full: pathlib.Path) -> None:
    """In the types that the tensors have; the small files are `full`'s."""
    checkpoint.check_tensors(part, config)  # type: ignore[arg-type]
    names = checkpoint.expected_shapes(config)
    folder.mkdir()
    checkpoint.write_json(folder / "config.json", raw)
    checkpoint.copy_small_files(full, folder)
    write_tensors(folder, {name: Spec(shape, part.dtype(name))
                           for name, shape in names.items()},
                  lambda name: part.read(name, None))


def copy_full(full: pathlib.Path, folder: pathlib.Path,
              config: ModelConfig) -> None:
    reader = TensorReader(full)
    checkpoint.check_tensors(reader, config)
    folder.mkdir()
    shutil.copyfile(full / "config.json", folder / "config.json")
    checkpoint.copy_small_files(full, folder)
    for path in sorted({*reader.files, reader.origin}):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def import_state(state: pathlib.Path, full: pathlib.Path, out: pathlib.Path,
                 layers: Optional[str] = None) -> None:
    checkpoint.check_new(out)
    config, raw = checkpoint.read_config(full)
    if not (full / "tokenizer.json").is_file():
        raise UserError(f"{full / 'tokenizer.json'}: no such file")
    parts = split_state(open_state(state))
    own_config, own_raw = student_config(parts[STUDENT], config, raw)
    found = choose_map(parts, config, own_config, layers)
    kind = "identity" if found is None else found.kind
    with checkpoint.new_folder(out) as folder:
        write_model(folder / "decode", parts[STUDENT], own_config, own_raw,
                    full)
        if TEACHER in parts:
            write_model(folder / "full", parts[TEACHER], config, raw, full)
        else:
            copy_full(full, folder / "full", config)
        if found is not None:
            kv_map.write(folder / "decode", found)
        # The state holds the weights alone: which channels they are is not
        # known.
        manifest.write(
            folder / "decode", folder / "full", None,
            list(range(own_config.num_hidden_layers)) if found is None
            else found.layers, kind)
    print(f"{out}: hidden_size {config.hidden_size} -> "
          f"{own_config.hidden_size}, intermediate_size "
          f"{config.intermediate_size} -> {own_config.intermediate_size}, "
          f"layers {config.num_hidden_layers} -> "
          f"{own_config.num_hidden_layers}, kv_map {kind}; full "
          f"weights from {state if TEACHER in parts else full}")


def main() -> None:
    parser = Parser(prog="training.import_overfill", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=pathlib.Path, required=True,
                        help="pytorch_model.bin, a .safetensors file, or a "
                        "folder that holds either, sharded or not")
    parser.add_argument("--full", type=pathlib.Path, required=True,
                        help="the full model's folder: config, tokenizer and, "
                        "where the state has no teacher, weights")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--layers", help="the full model's layers that a "
                        "student of fewer layers reads: first, last, "
                        "firstlast or a list such as 0,2,5")
    args = parser.parse_args()
    import_state(args.state, args.full, args.out, args.layers)


if __name__ == "__main__":
    main_of(main)

"""Tensors in safetensors files: read one by one, written one by one.

The files are other people's: nothing that they say is used before it is
checked against their size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import struct
from typing import (
    Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, Optional, Tuple)

import torch

from training.errors import UserError
from training.json_file import parse_json, read_json, write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
_MAX_HEADER_BYTES = 100_000_000
_MAX_INDEX_BYTES = 64 << 20
_MAX_SHARDS = 10_000
_MAX_DIMS = 16

_TORCH_TYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_TYPE_NAMES = {dtype: name for name, dtype in _TORCH_TYPES.items()}
_TYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2,
    "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
    "U64": 8, "F64": 8}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `begin` is counted from the file's start."""

    file: pathlib.Path
    dtype: str
    shape: Tuple[int, ...]
    begin: int
    num_bytes: int


class TensorReader:
    """The tensors of one file, or of a checkpoint's folder with its shards.

    Only headers are held; each read takes its tensor's bytes from the file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.origin = path
        self.files: List[pathlib.Path] = []
        self.entries: Dict[str, Entry] = {}
        if path.is_dir():
            self._open_folder(path)
        else:
            self._add_file(path)

    def _open_folder(self, folder: pathlib.Path) -> None:
        single, index = folder / SINGLE_FILE, folder / INDEX_FILE
        if index.exists():
            self._open_sharded(folder, index)
            # Some tools write an index of the single file, too.
            if single.exists() and self.files != [single]:
                raise UserError(f"{folder}: has both {SINGLE_FILE} and "
                                f"{INDEX_FILE}: one is stale")
        elif single.exists():
            self._add_file(single)
        else:
            raise UserError(
                f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}")

    def _open_sharded(self, folder: pathlib.Path, index: pathlib.Path) -> None:
        self.origin = index
        where = read_weight_map(index, ".safetensors")
        shards = sorted(set(where.values()))
        if len(shards) > _MAX_SHARDS:
            raise UserError(f"{index}: names {len(shards)} shards, more than "
                            f"{_MAX_SHARDS}")
        for shard in shards:
            for name in self._add_file(folder / shard):
                if where.get(name) != shard:
                    raise _bad_tensor(
                        folder / shard, name, f"is here, but {index} says "
                        f"{where.get(name, 'nowhere')}")
        for name, shard in where.items():
            if name not in self.entries:
                raise _bad_tensor(index, name, f"is not in {folder / shard}")

    def _add_file(self, path: pathlib.Path) -> List[str]:
        entries = _read_header(path)
        self.files.append(path)
        self.entries.update(entries)
        return list(entries)

    def names(self) -> List[str]:
        return list(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise _bad_tensor(self.origin, name, "is missing")
        return self.entries[name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return self._entry(name).shape

    def file(self, name: str) -> pathlib.Path:
        return self._entry(name).file

    def dtype(self, name: str) -> torch.dtype:
        entry = self._entry(name)
        if entry.dtype not in _TORCH_TYPES:
            raise _bad_tensor(entry.file, name, f"dtype {entry.dtype} is not "
                              "supported (F32, F16, BF16)")
        return _TORCH_TYPES[entry.dtype]

    def read(
        self, name: str, dtype: Optional[torch.dtype] = torch.float32
    ) -> torch.Tensor:
        """In memory of its own; `dtype` None is the stored one."""
        stored = self.dtype(name)
        entry = self._entry(name)
        data = torch.empty(entry.num_bytes, dtype=torch.uint8)
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.begin)
            if not _fill(file, memoryview(data.numpy())):
                raise _bad_tensor(entry.file, name, "the file is truncated")
        tensor = data.view(stored).reshape(entry.shape)
        return tensor if dtype is None else tensor.to(dtype)


def _fill(file: BinaryIO, target: memoryview) -> bool:
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            return False
        done += count
    return True


def _bad_tensor(where: pathlib.Path, name: str, what: str) -> UserError:
    return UserError(f"{where}: tensor {name[:200]!r}: {what}")


def read_weight_map(path: pathlib.Path, suffix: str) -> Dict[str, str]:
    """Of an index: the shard of each tensor, whose name ends in `suffix`."""
    raw = read_json(path, _MAX_INDEX_BYTES)
    where = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(where, dict) or not where:
        raise UserError(f"{path}: weight_map must be an object of shard names")
    for name, shard in where.items():
        if (not isinstance(shard, str) or not shard.endswith(suffix)
                or shard.startswith(".") or "/" in shard or "\0" in shard
                or len(shard) > 255):
            raise _bad_tensor(path, name, "its shard must be the plain name "
                              f"of a {suffix} file")
    return where


def _read_header(path: pathlib.Path) -> Dict[str, Entry]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise UserError(f"{path}: is truncated: {size} bytes are no "
                                "safetensors file")
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > _MAX_HEADER_BYTES:
                raise UserError(f"{path}: has a header of {header_bytes} "
                                f"bytes, more than {_MAX_HEADER_BYTES}")
            if header_bytes > size - 8:
                raise UserError(f"{path}: is truncated: its header has "
                                f"{header_bytes} bytes, the file {size}")
            header = parse_json(file.read(header_bytes), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: the header must be a JSON object")
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    entries = {name: _parse_entry(path, name, raw, start)
               for name, raw in header.items()}
    _check_coverage(path, entries, start, size)
    return entries


def _parse_entry(
    path: pathlib.Path, name: str, raw: Any, start: int
) -> Entry:
    def sizes(value: Any) -> bool:
        return isinstance(value, list) and all(
            type(n) is int and 0 <= n < 1 << 63 for n in value)

    if not isinstance(raw, dict) or set(raw) != {
            "dtype", "shape", "data_offsets"}:
        raise _bad_tensor(path, name, "must have a dtype, a shape and "
                          "data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPE_BYTES:
        raise _bad_tensor(path, name, f"dtype {str(dtype)[:50]!r} is unknown")
    if not sizes(shape) or len(shape) > _MAX_DIMS:
        raise _bad_tensor(path, name, "shape must be a list of sizes")
    if not sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad_tensor(path, name, "data_offsets must be two ascending "
                          "numbers")
    num_bytes = math.prod(shape) * _TYPE_BYTES[dtype]
    if num_bytes != offsets[1] - offsets[0]:
        raise _bad_tensor(
            path, name, f"{dtype} {shape} takes {num_bytes} bytes, but "
            f"data_offsets {offsets} hold {offsets[1] - offsets[0]}")
    return Entry(path, dtype, tuple(shape), start + offsets[0], num_bytes)


def _check_coverage(
    path: pathlib.Path, entries: Mapping[str, Entry], start: int, size: int
) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    done, last = start, ""
    for name, entry in sorted(
            entries.items(),
            key=lambda item: (item[1].begin, item[1].num_bytes)):
        end = entry.begin + entry.num_bytes
        if end > size:
            raise _bad_tensor(path, name, "its data reach beyond the file's "
                              f"{size} bytes: the file is truncated")
        if entry.begin < done:
            raise _bad_tensor(path, name, f"its data overlap those of "
                              f"{last[:200]!r}")
        if entry.begin > done:
            raise _bad_tensor(path, name, "its data leave a gap before them")
        done, last = end, name
    if done != size:
        raise UserError(f"{path}: has {size - done} bytes that belong to no "
                        "tensor")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a tensor to be written will be."""

    shape: Tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _TYPE_BYTES[_TYPE_NAMES[self.dtype]]


def write_tensors(
    folder: pathlib.Path, specs: Mapping[str, Spec],
    read: Callable[[str], torch.Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> List[pathlib.Path]:
    """A checkpoint's weights, asked for one at a time, in order of `specs`.

    One file, or shards and their index; the files that were made.
    """
    shards: List[List[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.num_bytes
    paths = [folder / SINGLE_FILE] if len(shards) == 1 else [
        folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)]
    for path, names in zip(paths, shards):
        write_file(path, {name: specs[name] for name in names}, read)
    if len(shards) > 1:
        index = folder / INDEX_FILE
        write_json(index, {
            "metadata": {
                "total_size": sum(spec.num_bytes for spec in specs.values())},
            "weight_map": {name: path.name for path, names in
                           zip(paths, shards) for name in names}})
        paths.append(index)
    return paths


def write_file(
    path: pathlib.Path, specs: Mapping[str, Spec],
    read: Callable[[str], torch.Tensor],
) -> None:
    header: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        header[name] = {"dtype": _TYPE_NAMES[spec.dtype],
                        "shape": list(spec.shape),
                        "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the data starts aligned
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, spec in specs.items():
            tensor = read(name)
            if tuple(tensor.shape) != spec.shape:
                raise ValueError(f"{name}: {tuple(tensor.shape)} is not "
                                 f"{spec.shape}")
            file.write(_bytes_of(tensor, spec.dtype))


def _bytes_of(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    tensor = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


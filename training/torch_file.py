"""Tensors in files of torch.save, read one by one without running their code.

torch.load unpickles, and a pickle may call anything; before torch 2.6 even
weights_only=True let some files through. Here the pickle may name tensors,
storages and dictionaries only, and what it says of a tensor is checked before
its bytes are read.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import struct
import zipfile
from typing import (
    Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union)

import torch

from training.errors import UserError
from training.safetensors_file import (
    INDEX_FILE, SINGLE_FILE, TensorReader, read_weight_map)

TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
_MAX_PICKLE_BYTES = 16 << 20
_MAX_DIMS = 16
_MAX_DEPTH = 4
_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "DoubleStorage": torch.float64,
    "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
_READABLE = (torch.float32, torch.float16, torch.bfloat16)
# What training programs wrap a state dict in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def _bytes_of(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


# What a pickle may build. Named tuples: its BUILD cannot change them once they
# were checked.
class _StorageType(NamedTuple):
    """Stands for torch.FloatStorage and the like."""

    dtype: torch.dtype


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int


class _Stored(NamedTuple):
    """A tensor: offset and stride count elements of its storage."""

    storage: _Storage
    offset: int
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last, inclusive."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))


class _Dict(dict):
    """An OrderedDict without its attributes, such as `_metadata`."""

    def __setstate__(self, state: Any) -> None:
        pass


def _make_dict(pairs: Any = ()) -> _Dict:
    return _Dict(pairs)


def _sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) <= _MAX_DIMS and all(
        type(n) is int and 0 <= n < 1 << 48 for n in value)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any,
                    *_: Any) -> _Stored:
    if (not isinstance(storage, _Storage) or not _sizes([offset])
            or not _sizes(shape) or not _sizes(stride)
            or len(shape) != len(stride)):
        raise pickle.UnpicklingError("a tensor is malformed")
    stored = _Stored(storage, offset, tuple(shape), tuple(stride))
    # No more elements than the storage has: nothing is blown up by strides.
    if (offset + stored.span > storage.numel
            or math.prod(shape) > storage.numel):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return stored


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle._Unpickler):
    """Knows the names of a state dict's pickle and no others.

    The one that is written in Python: the other's memo takes as much memory
    as the largest index that a file names.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("collections", "OrderedDict"):
            return _make_dict
        if module == "torch._utils":
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
                return _rebuild_tensor
            if name == "_rebuild_parameter":
                return _rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise pickle.UnpicklingError(
            f"it names {module[:100]}.{name[:100]}, which a state dict does "
            "not need")

    def persistent_load(self, pid: Any) -> _Storage:
        if (not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage"
                or not isinstance(pid[1], _StorageType)
                or not isinstance(pid[2], str) or not _sizes([pid[4]])):
            raise pickle.UnpicklingError("a storage is malformed")
        return _Storage(pid[2], pid[1].dtype, pid[4])


class TorchReader:
    """The tensors of one file, as TensorReader has those of safetensors."""

    def __init__(self, path: pathlib.Path) -> None:
        self.origin = path
        self.files = [path]
        self._infos: Dict[str, zipfile.ZipInfo] = {}
        try:
            self._size = path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                self._infos = {i.filename: i for i in archive.infolist()}
                self._prefix = self._find_prefix()
                pickled = self._pickle_of(archive)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
        except Exception as error:  # broken archives raise many kinds
            raise self._fail("is no file of torch.save, or is truncated "
                             f"({error})"[:500]) from None
        self._tensors = self._find_tensors(self._unpickle(pickled))
        for name, stored in self._tensors.items():
            self._record(name, stored.storage)

    def _fail(self, what: str) -> UserError:
        return UserError(f"{self.origin}: {what}")

    def _bad_tensor(self, name: str, what: str) -> UserError:
        return self._fail(f"tensor {name[:200]!r}: {what}")

    def _find_prefix(self) -> str:
        found = [name for name in self._infos if name.endswith("/data.pkl")
                 and name.count("/") == 1]
        if len(found) != 1:
            raise self._fail("is no file of torch.save: has no data.pkl")
        return found[0][:-len("data.pkl")]

    def _pickle_of(self, archive: zipfile.ZipFile) -> bytes:
        order = self._infos.get(self._prefix + "byteorder")
        if order is not None and (order.file_size != 6 or
                                  archive.read(order) != b"little"):
            raise self._fail("its numbers are not little-endian")
        info = self._infos[self._prefix + "data.pkl"]
        if max(info.file_size, info.compress_size) > _MAX_PICKLE_BYTES:
            raise self._fail(f"its data.pkl has {info.file_size} bytes, more "
                             f"than {_MAX_PICKLE_BYTES}")
        return archive.read(info)

    def _unpickle(self, pickled: bytes) -> Any:
        try:
            return _Unpickler(io.BytesIO(pickled)).load()
        except MemoryError:
            raise
        except Exception as error:  # broken pickles raise whatever they like
            raise self._fail(f"is not read: {error}"[:500]) from None

    def _find_tensors(self, data: Any) -> Dict[str, _Stored]:
        for _ in range(_MAX_DEPTH):
            if not isinstance(data, dict):
                break
            if any(isinstance(value, _Stored) for value in data.values()):
                return self._only_tensors(data)
            inner = [data[key] for key in _WRAPPERS
                     if isinstance(data.get(key), dict)]
            if len(inner) != 1:
                break
            data = inner[0]
        raise self._fail("holds no state dict")

    def _only_tensors(self, data: Dict[Any, Any]) -> Dict[str, _Stored]:
        for name, value in data.items():
            if not isinstance(name, str):
                raise self._fail("a tensor's name is no text")
            if not isinstance(value, _Stored):
                raise self._bad_tensor(name, "is no tensor")
        return data

    def _record(self, name: str, storage: _Storage) -> zipfile.ZipInfo:
        info = self._infos.get(f"{self._prefix}data/{storage.key}")
        if info is None:
            raise self._bad_tensor(name, "its storage is not in the file")
        want = storage.numel * _bytes_of(storage.dtype)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != want:
            raise self._bad_tensor(name, f"its storage has {info.file_size} "
                                   f"bytes, not {want}")
        if info.header_offset < 0 or info.header_offset + want > self._size:
            raise self._bad_tensor(name, "the file is truncated")
        return info

    def names(self) -> List[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _stored(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise self._bad_tensor(name, "is missing")
        return self._tensors[name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return self._stored(name).shape

    def dtype(self, name: str) -> torch.dtype:
        dtype = self._stored(name).storage.dtype
        if dtype not in _READABLE:
            raise self._bad_tensor(name, f"dtype {dtype} is not supported "
                                   "(float32, float16, bfloat16)")
        return dtype

    def read(
        self, name: str, dtype: Optional[torch.dtype] = torch.float32
    ) -> torch.Tensor:
        """In memory of its own; `dtype` None is the stored one."""
        own, stored = self.dtype(name), self._stored(name)
        info = self._record(name, stored.storage)
        item = _bytes_of(own)
        data = torch.empty(stored.span * item, dtype=torch.uint8)
        with self.origin.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) != 30 or header[:4] != b"PK\x03\x04":
                raise self._bad_tensor(name, "its record is broken")
            lengths = struct.unpack("<HH", header[26:30])
            file.seek(sum(lengths) + stored.offset * item, 1)
            if file.readinto(memoryview(data.numpy())) != len(data):
                raise self._bad_tensor(name, "the file is truncated")
        tensor = data.view(own).as_strided(stored.shape, stored.stride)
        # One that is not contiguous is copied, so that it can be viewed.
        tensor = tensor.contiguous()
        return tensor if dtype is None else tensor.to(dtype)


class ShardedTorchReader:
    """pytorch_model.bin.index.json and its shards."""

    def __init__(self, index: pathlib.Path) -> None:
        self.origin = index
        where = read_weight_map(index, ".bin")
        shards = {shard: TorchReader(index.parent / shard)
                  for shard in sorted(set(where.values()))}
        self.files = [shard.origin for shard in shards.values()]
        self._readers = {name: shards[shard] for name, shard in where.items()}
        for name, reader in self._readers.items():
            reader.shape(name)  # named by the index, so it must be there

    def names(self) -> List[str]:
        return list(self._readers)

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def _reader(self, name: str) -> TorchReader:
        if name not in self._readers:
            raise UserError(f"{self.origin}: tensor {name[:200]!r}: is missing")
        return self._readers[name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return self._reader(name).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._reader(name).dtype(name)

    def read(
        self, name: str, dtype: Optional[torch.dtype] = torch.float32
    ) -> torch.Tensor:
        return self._reader(name).read(name, dtype)


StateReader = Union[TensorReader, TorchReader, ShardedTorchReader]


def open_state(path: pathlib.Path) -> StateReader:
    """A file, or a folder with one of the names of Hugging Face."""
    if path.is_dir():
        if (path / SINGLE_FILE).exists() or (path / INDEX_FILE).exists():
            return TensorReader(path)
        if (path / TORCH_INDEX_FILE).exists():
            return ShardedTorchReader(path / TORCH_INDEX_FILE)
        if (path / TORCH_FILE).exists():
            return TorchReader(path / TORCH_FILE)
        raise UserError(f"{path}: has none of {SINGLE_FILE}, {INDEX_FILE}, "
                        f"{TORCH_FILE}, {TORCH_INDEX_FILE}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return TensorReader(path)
    return TorchReader(path)

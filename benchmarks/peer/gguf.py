"""GGUF files of the llama architecture with random weights.

They are for measuring speed, which does not depend on the values: the same
seed gives the same noise in each type, so that types can be compared. The
token embedding is tied: llama.cpp uses it for the logits too.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import pathlib
import struct
from typing import BinaryIO, Callable, Dict, List, Tuple, Union

import numpy as np
import numpy.typing as npt

DTYPES = ("bf16", "q8_0")

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Numbers of the GGUF format: of its metadata types, tensor types, file types.
_MAGIC = b"GGUF"
_VERSION = 3
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_TENSOR_TYPES = {"f32": 0, "q8_0": 8, "bf16": 30}
_FILE_TYPES = {"q8_0": 7, "bf16": 32}
_ALIGNMENT = 32

# Elements of a block: q8_0 has one scale for so many.
_BLOCK = 32
# Enough noise that rows of a matrix differ, and little enough for the cache.
_POOL_BLOCKS = 1 << 17
# Blocks written at a time.
_SLICE_BLOCKS = 1 << 17


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model; `context` is only what its metadata say."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A matrix of `outputs` rows of `inputs`, or a norm if `outputs` is 0."""

    name: str
    inputs: int
    outputs: int = 0

    def elements(self) -> int:
        return self.inputs * max(self.outputs, 1)

    def type_name(self, dtype: str) -> str:
        return dtype if self.outputs else "f32"

    def data_size(self, dtype: str) -> int:
        per_block = {"f32": 128, "bf16": 64, "q8_0": 34}
        size = self.elements() * per_block[self.type_name(dtype)]
        return size // _BLOCK


def _layer_tensors(shape: Shape, layer: int) -> List[_Tensor]:
    attention = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    hidden, intermediate = shape.hidden, shape.intermediate
    tensors = [
        _Tensor("attn_norm", hidden),
        _Tensor("attn_q", hidden, attention),
        _Tensor("attn_k", hidden, kv),
        _Tensor("attn_v", hidden, kv),
        _Tensor("attn_output", attention, hidden),
        _Tensor("ffn_norm", hidden),
        _Tensor("ffn_gate", hidden, intermediate),
        _Tensor("ffn_up", hidden, intermediate),
        _Tensor("ffn_down", intermediate, hidden),
    ]
    prefix = f"blk.{layer}."
    return [dataclasses.replace(tensor, name=f"{prefix}{tensor.name}.weight")
            for tensor in tensors]


def _tensors(shape: Shape) -> List[_Tensor]:
    tensors = [_Tensor("token_embd.weight", shape.hidden, shape.vocab)]
    for layer in range(shape.layers):
        tensors += _layer_tensors(shape, layer)
    return tensors + [_Tensor("output_norm.weight", shape.hidden)]


def _check(shape: Shape, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}, not one of {', '.join(DTYPES)}")
    for field in dataclasses.fields(shape):
        if getattr(shape, field.name) < 1:
            raise ValueError(f"{field.name} is less than 1")
    if shape.heads % shape.kv_heads:
        raise ValueError("heads is not a multiple of kv_heads")
    if shape.head_dim % 2:
        raise ValueError("head_dim is odd: rotary positions need pairs")
    if dtype == "q8_0":
        for tensor in _tensors(shape):
            if tensor.outputs and tensor.inputs % _BLOCK:
                raise ValueError(f"q8_0 needs rows of a multiple of {_BLOCK}: "
                                 f"{tensor.name} has {tensor.inputs}")


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: Union[str, int, float]) -> bytes:
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, float):
        return _string(key) + struct.pack("<If", _FLOAT32, value)
    return _string(key) + struct.pack("<II", _UINT32, value)


def _metadata(shape: Shape, dtype: str) -> Dict[str, Union[str, int, float]]:
    return {
        "general.architecture": "llama",
        "general.name": "random weights",
        "general.alignment": _ALIGNMENT,
        "general.file_type": _FILE_TYPES[dtype],
        "llama.vocab_size": shape.vocab,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.intermediate,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.rope.freq_base": 10000.0,
        # llama.cpp then takes the vocabulary's size from llama.vocab_size.
        "tokenizer.ggml.model": "no_vocab",
    }


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _header(shape: Shape, dtype: str) -> bytes:
    """All that comes before the data, padded so that they start aligned."""
    metadata = _metadata(shape, dtype)
    tensors = _tensors(shape)
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    parts += [_pair(key, value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        # The fastest dimension comes first: that of a row.
        sizes: Tuple[int, ...] = (tensor.inputs,)
        if tensor.outputs:
            sizes += (tensor.outputs,)
        parts.append(_string(tensor.name) + struct.pack("<I", len(sizes)))
        parts.append(struct.pack(f"<{len(sizes)}Q", *sizes))
        type_number = _TENSOR_TYPES[tensor.type_name(dtype)]
        parts.append(struct.pack("<IQ", type_number, offset))
        offset += _aligned(tensor.data_size(dtype))
    header = b"".join(parts)
    return header.ljust(_aligned(len(header)), b"\0")


def _to_bf16(values: Floats) -> Bytes:
    """Blocks of bf16, rounded to nearest even; a row for each."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").view(np.uint8)


def _to_q8_0(values: Floats) -> Bytes:
    """Blocks of q8_0, a row for each: the scale in f16, then 32 int8."""
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    blocks = np.empty((len(values), 2 + _BLOCK), np.uint8)
    blocks[:, :2] = scales.astype("<f2").view(np.uint8)
    blocks[:, 2:] = np.rint(values / scales).astype(np.int8).view(np.uint8)
    return blocks


_ENCODERS: Dict[str, Callable[[Floats], Bytes]] = {
    "bf16": _to_bf16, "q8_0": _to_q8_0}


class _Noise:
    """Random weights in a type.

    Drawing billions of normal numbers would take minutes. So blocks of them are
    drawn once, and each matrix is made of blocks picked at random, the same
    ones in each type.
    """

    def __init__(self, dtype: str, seed: int) -> None:
        self._seed = seed
        self._encode = _ENCODERS[dtype]
        self._values = np.random.default_rng(seed).standard_normal(
            (_POOL_BLOCKS, _BLOCK), dtype=np.float32)
        self._pools: Dict[int, npt.NDArray[np.void]] = {}

    def _pool(self, inputs: int) -> npt.NDArray[np.void]:
        """The blocks, scaled so that a sum over `inputs` keeps its variance."""
        if inputs not in self._pools:
            scale = np.float32(1 / math.sqrt(inputs))
            blocks = self._encode(self._values * scale)
            # One item for each block, since picking items is fast.
            block_type = np.dtype((np.void, blocks.shape[1]))
            self._pools[inputs] = blocks.view(block_type)[:, 0]
        return self._pools[inputs]

    def write(self, file: BinaryIO, tensor: _Tensor, index: int,
              size: int) -> None:
        """`size` bytes, the matrix that is the file's tensor `index`."""
        pool = self._pool(tensor.inputs)
        rng = np.random.default_rng([self._seed, index])
        left = -(-tensor.elements() // _BLOCK)
        while left > 0:
            count = min(left, _SLICE_BLOCKS)
            picked = pool[rng.integers(0, _POOL_BLOCKS, count, np.uint32)]
            # The last block is cut if the matrix ends within it.
            data = picked.view(np.uint8)[:size].data
            file.write(data)
            size -= len(data)
            left -= count


def _write(file: BinaryIO, shape: Shape, dtype: str, seed: int) -> None:
    file.write(_header(shape, dtype))
    noise = _Noise(dtype, seed)
    for index, tensor in enumerate(_tensors(shape)):
        size = tensor.data_size(dtype)
        if tensor.outputs:
            noise.write(file, tensor, index, size)
        else:
            file.write(np.ones(tensor.inputs, "<f4").tobytes())
        file.write(bytes(_aligned(size) - size))


def write_model(path: pathlib.Path, shape: Shape, dtype: str,
                seed: int) -> None:
    """Writes the file at once: a reader sees all of it or none."""
    _check(shape, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _write(file, shape, dtype, seed)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--seed", type=int, default=1)
    for field in dataclasses.fields(Shape):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=int, required=True)
    args = parser.parse_args()
    shape = Shape(*(getattr(args, field.name)
                    for field in dataclasses.fields(Shape)))
    try:
        write_model(args.path, shape, args.dtype, args.seed)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

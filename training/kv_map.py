"""How the full model's KV becomes what the pruned model reads: the server's
three ways, to train with and to write (engine/kv_map.h has the format)."""

from __future__ import annotations

import pathlib
from typing import Dict, List, Optional

import torch
from torch import nn
import torch.nn.functional as F

from training.checkpoint import TensorReader
from training.errors import UserError
from training.json_file import read_json, write_json
from training.model import LayerKV
from training.model_config import ModelConfig
from training.safetensors_file import Spec, write_file

FILE_NAME = "kv_map.json"
TENSORS_NAME = "kv_map.safetensors"
KINDS = ("identity", "layers", "projection")


class KvMap(nn.Module):
    """Layer l of the pruned model reads layer layers[l] of the full one."""

    def __init__(self, layers: List[int]) -> None:
        super().__init__()
        self.layers = layers

    @property
    def kind(self) -> str:
        return "layers"

    def forward(self, full_kv: List[LayerKV]) -> List[LayerKV]:
        return [full_kv[layer] for layer in self.layers]


class Projection(KvMap):
    """Through a linear map for K, as it is cached (after q/k norm and RoPE),
    and one for V, of all heads of a token at once. Maps that were made
    elsewhere may add a bias."""

    def __init__(
        self, layers: List[int], full: ModelConfig, pruned: ModelConfig,
        has_bias: bool = False,
    ) -> None:
        """Starts as the identity, as far as the shapes go."""
        super().__init__(layers)
        self.num_kv_heads = pruned.num_key_value_heads
        self.head_dim = pruned.head_dim
        shape = (self.num_kv_heads * self.head_dim,
                 full.num_key_value_heads * full.head_dim)
        self.k = nn.ParameterList(
            nn.Parameter(torch.eye(*shape)) for _ in layers)
        self.v = nn.ParameterList(
            nn.Parameter(torch.eye(*shape)) for _ in layers)
        num_biases = len(layers) if has_bias else 0
        self.k_bias, self.v_bias = (
            nn.ParameterList(nn.Parameter(torch.zeros(shape[0]))
                             for _ in range(num_biases)) for _ in "kv")

    @property
    def kind(self) -> str:
        return "projection"

    def forward(self, full_kv: List[LayerKV]) -> List[LayerKV]:
        return [(self._map(full_kv[layer][0], self.k, self.k_bias, index),
                 self._map(full_kv[layer][1], self.v, self.v_bias, index))
                for index, layer in enumerate(self.layers)]

    def _map(
        self, x: torch.Tensor, weights: nn.ParameterList,
        biases: nn.ParameterList, index: int,
    ) -> torch.Tensor:
        """[batch, Hkv, tokens, D] -> [batch, Hkv', tokens, D']."""
        batch, _, num_tokens, _ = x.shape
        x = x.transpose(1, 2).reshape(batch, num_tokens, -1)
        weight = weights[index]
        x = F.linear(x.to(weight.dtype), weight,
                     biases[index] if len(biases) else None)
        return x.view(batch, num_tokens, self.num_kv_heads,
                      self.head_dim).transpose(1, 2)


def check(
    where: str, layers: List[int], full: ModelConfig, pruned: ModelConfig
) -> None:
    """`where` names the file that states the layers."""
    if any(type(n) is not int or n < 0 for n in layers):
        raise UserError(f"{where}: layers must be a list of numbers from 0 on")
    if len(layers) != pruned.num_hidden_layers:
        raise UserError(
            f"{where}: names {len(layers)} layers, but num_hidden_layers of "
            f"the decode model is {pruned.num_hidden_layers}")
    if any(a >= b for a, b in zip(layers, layers[1:])):
        raise UserError(f"{where}: layers must ascend")
    if layers and layers[-1] >= full.num_hidden_layers:
        raise UserError(
            f"{where}: names layer {layers[-1]}, but num_hidden_layers of the "
            f"full model is {full.num_hidden_layers}")


def read(
    path: pathlib.Path, full: ModelConfig, pruned: ModelConfig
) -> Optional[KvMap]:
    """A kv_map file's; None: identity."""
    stated = read_json(path)
    kind = stated.get("kind") if isinstance(stated, dict) else None
    if kind not in KINDS:
        raise UserError(f"{path}: kind must be one of {', '.join(KINDS)}")
    members = {"identity": {"kind"}, "layers": {"kind", "layers"},
               "projection": {"kind", "layers", "file"}}[kind]
    if set(stated) != members:
        raise UserError(
            f"{path}: a {kind} has the members {', '.join(sorted(members))}")
    if kind == "identity":
        return None
    layers = stated["layers"]
    if not isinstance(layers, list):
        raise UserError(f"{path}: layers must be a list of numbers")
    check(str(path), layers, full, pruned)
    if kind == "layers":
        return KvMap(layers)
    return _read_projection(path, stated["file"], layers, full, pruned)


def _read_projection(
    path: pathlib.Path, file: object, layers: List[int], full: ModelConfig,
    pruned: ModelConfig,
) -> Projection:
    if not isinstance(file, str) or not file or file[0] == "." or (
            "/" in file or "\0" in file):
        raise UserError(f"{path}: file must be a plain file name")
    reader = TensorReader(path.parent / file)
    has_bias = any(name.endswith(".bias") for name in reader.names())
    result = Projection(layers, full, pruned, has_bias)
    with torch.no_grad():
        for name, parameter in _tensors(result).items():
            if name not in reader and name.endswith(".bias"):
                continue  # zero
            if name not in reader:
                raise UserError(f"{reader.origin}: tensor {name!r} is missing")
            if reader.shape(name) != tuple(parameter.shape):
                raise UserError(
                    f"{reader.origin}: tensor {name!r} is "
                    f"{list(reader.shape(name))}; the pair needs "
                    f"{list(parameter.shape)}")
            parameter.copy_(reader.read(name))
    for name in reader.names():
        if name not in _tensors(result):
            raise UserError(f"{reader.origin}: tensor {name[:200]!r} is no "
                            "map of this pair")
    return result


def _tensors(projection: Projection) -> Dict[str, nn.Parameter]:
    """By the names of the file."""
    return {f"layers.{index}.{name}": tensors[index]
            for name, tensors in (
                ("k", projection.k), ("k.bias", projection.k_bias),
                ("v", projection.v), ("v.bias", projection.v_bias))
            for index in range(len(tensors))}


def write(folder: pathlib.Path, kv_map: Optional[KvMap]) -> None:
    """kv_map.json and, of a projection, its tensors in float32: steps away
    from the identity are smaller than bf16 can say. A bias of zeros is left
    out."""
    stated = {"kind": "identity" if kv_map is None else kv_map.kind}
    if kv_map is not None:
        stated["layers"] = kv_map.layers
    if isinstance(kv_map, Projection):
        stated["file"] = TENSORS_NAME
        tensors = {name: tensor for name, tensor in _tensors(kv_map).items()
                   if not name.endswith(".bias") or bool(tensor.any())}
        write_file(folder / TENSORS_NAME, {
            name: Spec(tuple(tensor.shape), torch.float32)
            for name, tensor in tensors.items()}, tensors.__getitem__)
    write_json(folder / FILE_NAME, stated)

"""What is distilled: the checked pair that goes in, the folder that comes
out."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch

from training import checkpoint, kv_map, manifest
from training.errors import UserError
from training.kv_map import KvMap, Projection
from training.model import Llama, init_weights
from training.model_config import ModelConfig
from training.safetensors_file import TensorReader
from training.two_stage import Student

# Of Student's state dict.
_MODEL, _MAP = "model.", "kv_transform."


@dataclasses.dataclass
class Pair:
    full: Optional[Llama]  # None: nothing of it is needed
    student: Student
    stated: Dict[str, Any]  # the decode model's config.json


Configs = Tuple[ModelConfig, ModelConfig]  # full, decode


def check_pair(
    full: pathlib.Path, decode: pathlib.Path, configs: Configs,
    reads_kv: bool, projects: bool,
) -> None:
    """Whether the two go together, as the server checks it. `reads_kv`: the
    full model's, by the decode model; `projects`: through linear maps."""
    fields = ["vocab_size", "rope_theta", "rope_scaling"]
    if reads_kv:
        fields.append("dtype")
    if reads_kv and not projects:
        fields += ["architecture", "num_key_value_heads", "head_dim"]
    for field in fields:
        values = [getattr(config, field) for config in configs]
        if values[0] != values[1]:
            raise UserError(
                f"{full}/config.json and {decode}/config.json: {field} is "
                f"{values[0]} and {values[1]}")
    ours, theirs = full / "tokenizer.json", decode / "tokenizer.json"
    if ours.is_file() and theirs.is_file() and (
            checkpoint.sha256_of(ours) != checkpoint.sha256_of(theirs)):
        raise UserError(f"{ours} and {theirs} differ")


def find_map(
    decode: pathlib.Path, named: Optional[pathlib.Path],
    configs: Configs, full: pathlib.Path,
) -> Optional[KvMap]:
    """The named kv_map file, else the decode folder's, else what its manifest
    says, else identity (None)."""
    path = named or decode / kv_map.FILE_NAME
    found: Optional[KvMap] = None
    where = str(path)
    if named is not None or path.is_file():
        found = kv_map.read(path, *configs)
    elif (decode / manifest.FILE_NAME).is_file():
        where = str(decode / manifest.FILE_NAME)
        stated = manifest.read(decode)
        if stated.get("kv_map") == "projection":
            raise UserError(f"{where}: kv_map is projection; name its file "
                            "with --kv-map")
        if stated.get("kv_map") == "layers":
            layers = stated.get("layer_map")
            if not isinstance(layers, list):
                raise UserError(f"{where}: layer_map must be a list")
            kv_map.check(where, layers, *configs)
            found = KvMap(layers)
    layers = [config.num_hidden_layers for config in configs]
    if found is None and layers[0] != layers[1]:
        raise UserError(
            f"{full}/config.json and {decode}/config.json: num_hidden_layers "
            f"is {layers[0]} and {layers[1]}; name a map with --kv-map")
    return found


def _transform(
    full: pathlib.Path, decode: pathlib.Path, configs: Configs,
    named: Optional[pathlib.Path], projection: bool,
) -> Optional[KvMap]:
    found = find_map(decode, named, configs, full)
    if isinstance(found, Projection):
        return found.requires_grad_(projection)
    if not projection:
        return found
    layers = (list(range(configs[1].num_hidden_layers)) if found is None
              else found.layers)
    return Projection(layers, *configs)


def load(
    full: Optional[pathlib.Path], decode: pathlib.Path, *, is_two_stage: bool,
    needs_full: bool, projection: bool, named_map: Optional[pathlib.Path],
    random_seed: Optional[int], full_dtype: torch.dtype,
) -> Pair:
    """`random_seed`: of fresh weights in place of the checkpoint's."""
    transform: Optional[KvMap] = None
    if full is not None:
        configs = (checkpoint.read_config(full)[0],
                   checkpoint.read_config(decode)[0])
        if is_two_stage:
            transform = _transform(full, decode, configs, named_map,
                                   projection)
        check_pair(full, decode, configs, is_two_stage,
                   isinstance(transform, Projection))
    if random_seed is None:
        model, stated = checkpoint.load_checkpoint(decode)
    else:
        config, stated = checkpoint.read_config(decode)
        model = Llama(config)
        init_weights(model, random_seed)
    teacher = None
    if needs_full and full is not None:
        teacher, _ = checkpoint.load_checkpoint(full, full_dtype)
        teacher.requires_grad_(False)
    return Pair(teacher, Student(model, transform), stated)


def fingerprint(folder: Optional[pathlib.Path]) -> List[str]:
    """Cheap: the digests of config and manifest, and the weight files' names
    and sizes."""
    if folder is None:
        return []
    small = [folder / "config.json", folder / manifest.FILE_NAME]
    return [checkpoint.sha256_of(path) for path in small if path.is_file()] + [
        f"{path.name} {path.stat().st_size}"
        for path in sorted(TensorReader(folder).files)]


def write(
    folder: pathlib.Path, name: str, decode: pathlib.Path, pair: Pair,
    state: Mapping[str, torch.Tensor], is_cut: bool,
    full: Optional[pathlib.Path],
) -> None:
    """The trained decode model, its tokenizer and map, and the manifest where
    its weights are still `is_cut` from a full model's. `state` is the
    student's; `name` the folder's later one; `full` the model whose KV it
    reads, None where it reads none."""
    tensors = {key[len(_MODEL):]: tensor for key, tensor in state.items()
               if key.startswith(_MODEL)}
    checkpoint.save_checkpoint(
        folder, pair.student.model, stated=pair.stated, state=tensors)
    checkpoint.copy_small_files(decode, folder)
    transform = pair.student.kv_transform
    if isinstance(transform, Projection):
        _set_maps(transform, state)
    if transform is not None:
        kv_map.write(folder, transform)
    elif (decode / kv_map.FILE_NAME).is_file():
        # Single-stage training has no part in it.
        checkpoint.copy_files(
            decode, folder, (kv_map.FILE_NAME, kv_map.TENSORS_NAME))
    if is_cut and (decode / manifest.FILE_NAME).is_file():
        stated = manifest.read(decode)
        stated["decode"]["name"] = name
        if transform is not None:
            stated["kv_map"] = transform.kind
            stated["layer_map"] = transform.layers
        if full is not None:
            _state_full(stated, full)
        checkpoint.write_json(folder / manifest.FILE_NAME, stated)
        manifest.refresh(folder)


def _state_full(stated: Dict[str, Any], full: pathlib.Path) -> None:
    """It may be another one than the decode model was cut from, a later
    version of it for example."""
    described = manifest.describe(full)
    for kept, size in (("kept_hidden", "hidden_size"),
                       ("kept_intermediate", "intermediate_size")):
        if stated["full"].get(size) != described[size]:
            stated[kept] = None
    stated["full"] = described


def _set_maps(
    projection: Projection, state: Mapping[str, torch.Tensor]
) -> None:
    """Those of the state: the module's own may be spread over processes."""
    for name in ("k", "v", "k_bias", "v_bias"):
        count = len(getattr(projection, name))
        setattr(projection, name, torch.nn.ParameterList(
            torch.nn.Parameter(state[f"{_MAP}{name}.{index}"].cpu())
            for index in range(count)))

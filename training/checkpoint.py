"""Hugging Face checkpoints: weights in safetensors, config.json and others."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import pathlib
import shutil
from typing import (
    Any, Dict, Iterable, Iterator, Mapping, Optional, Tuple, Union)

import torch
from torch import nn

from training.errors import UserError
from training.json_file import read_json, write_json
from training.model import Llama, ModelConfig
from training.model_config import hf_config, parse_config
from training.safetensors_file import Spec, TensorReader, write_tensors

__all__ = [
    "Spec", "TensorReader", "check_new", "check_tensors", "copy_files",
    "copy_small_files", "expected_shapes", "hf_config", "load_checkpoint",
    "new_folder", "read_config", "read_json", "save_checkpoint", "set_tensor",
    "sha256_of", "write_json", "write_tensors"]

# What a tokenizer may consist of, in the folder of its model.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json")
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def save_checkpoint(
    folder: pathlib.Path, model: Llama, bos_id: Optional[int] = None,
    eos_id: Optional[int] = None, stated: Optional[Dict[str, Any]] = None,
    state: Optional[Mapping[str, torch.Tensor]] = None,
) -> None:
    """Weights in the config's type, config.json and generation_config.json.

    `stated` is the config.json that the model was loaded with: it is written
    again, and no generation config. `state` stands for the model's own
    tensors, which may be spread over processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if stated is None:
        write_json(folder / "config.json",
                   hf_config(model.config, bos_id, eos_id))
        write_json(folder / "generation_config.json", {
            "do_sample": False, "bos_token_id": bos_id,
            "eos_token_id": eos_id})
    else:
        write_json(folder / "config.json", stated)
    tensors = model.state_dict() if state is None else state
    dtype = getattr(torch, model.config.dtype)
    write_tensors(folder, {name: Spec(tuple(tensors[name].shape), dtype)
                           for name in sorted(tensors)}, tensors.__getitem__)


def read_config(folder: pathlib.Path) -> Tuple[ModelConfig, Dict[str, Any]]:
    """What config.json says, and all of it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no directory")
    path = folder / "config.json"
    raw = read_json(path)
    return parse_config(raw, str(path)), raw


def expected_shapes(config: ModelConfig) -> Dict[str, Tuple[int, ...]]:
    model = Llama(config, device="meta")
    return {name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()}


def check_tensors(reader: TensorReader, config: ModelConfig) -> None:
    """Neither too few tensors nor too many, and all of the right shape."""
    shapes = expected_shapes(config)
    for name, shape in shapes.items():
        if name not in reader:
            raise UserError(f"{reader.origin}: tensor {name!r} is missing; "
                            f"config.json asks for {list(shape)}")
        if reader.shape(name) != shape:
            raise UserError(
                f"{reader.file(name)}: tensor {name!r} is "
                f"{list(reader.shape(name))}; config.json asks for "
                f"{list(shape)}")
        reader.dtype(name)
    for name in reader.names():
        if name in shapes or name.endswith(".rotary_emb.inv_freq"):
            continue
        if name != HEAD:
            raise UserError(
                f"{reader.file(name)}: tensor {name[:200]!r}: a "
                f"{config.architecture} of this config.json has no such one")
        if not _same_bits(reader, EMBEDDING, HEAD):
            raise UserError(
                f"{reader.file(name)}: tensor {name!r} differs from the "
                "embedding, but config.json has tie_word_embeddings true")


def _same_bits(reader: TensorReader, left: str, right: str) -> bool:
    if (reader.shape(left), reader.dtype(left)) != (
            reader.shape(right), reader.dtype(right)):
        return False
    one, other = reader.read(left, None), reader.read(right, None)
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def set_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """In the place of a parameter that has no memory yet."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    setattr(module, last, nn.Parameter(tensor))


def load_checkpoint(
    folder: pathlib.Path, dtype: torch.dtype = torch.float32,
    device: Union[str, torch.device] = "cpu",
) -> Tuple[Llama, Dict[str, Any]]:
    """The model and its config.json; one copy of the weights in memory."""
    config, raw = read_config(folder)
    reader = TensorReader(folder)
    check_tensors(reader, config)
    model = Llama(config, device="meta")
    for name in model.state_dict():
        set_tensor(model, name, reader.read(name, dtype).to(device))
    return model.eval(), raw


def copy_files(
    source: pathlib.Path, target: pathlib.Path, names: Iterable[str]
) -> None:
    """Those of them that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def copy_small_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """What lies beside weights and config.json and does not change."""
    copy_files(source, target, ("generation_config.json", *TOKENIZER_FILES))


def check_new(out: pathlib.Path) -> None:
    """Nothing of the user's is overwritten."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out}: exists and is no directory")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty")


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder that becomes `out` when all is written, or goes away."""
    out = pathlib.Path(os.path.abspath(out))
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        # Of a process that was killed; a living one holds the lock.
        with contextlib.suppress(OSError), _locked(left) as is_ours:
            if is_ours:
                shutil.rmtree(left)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        with _locked(partial):
            yield partial
        os.replace(partial, out)  # an empty `out` gives way
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[bool]:
    """False where another process has the lock, or folders have none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        is_ours = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            is_ours = False
        yield is_ours
    finally:
        os.close(handle)


def sha256_of(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Hugging Face checkpoints: safetensors in bf16, config, generation config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import struct
from typing import Any, Dict, List, Tuple

import numpy as np
import torch

from training.model import Llama, ModelConfig

# safetensors' name of each type, and numpy's of its bits. numpy has no bf16.
_NUMPY_TYPES = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16}


def to_bf16_bits(tensor: torch.Tensor) -> np.ndarray:
    """Rounded to nearest even, as uint16."""
    rounded = tensor.detach().contiguous().to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def from_bf16_bits(bits: np.ndarray) -> torch.Tensor:
    """The float32 tensor of the same values."""
    return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))


def write_safetensors(
    path: pathlib.Path, tensors: Dict[str, torch.Tensor]
) -> None:
    """All tensors in bf16, in the order of their names."""
    header: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks: List[bytes] = []
    offset = 0
    for name in sorted(tensors):
        data = to_bf16_bits(tensors[name]).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape),
                        "data_offsets": [offset, offset + len(data)]}
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the data starts aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(chunks)


def read_safetensors(path: pathlib.Path) -> Dict[str, torch.Tensor]:
    """All tensors, widened to float32."""
    content = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + header_bytes])
    data = content[8 + header_bytes:]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(
            data[begin:end], dtype=_NUMPY_TYPES[entry["dtype"]])
        values = values.reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            tensors[name] = from_bf16_bits(values)
        else:
            tensors[name] = torch.from_numpy(values.astype(np.float32))
    return tensors


def hf_config(config: ModelConfig, bos_id: int, eos_id: int) -> Dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        **dataclasses.asdict(config),
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "rope_scaling": None, "pretraining_tp": 1,
        "initializer_range": config.hidden_size ** -0.5, "use_cache": True,
        "bos_token_id": bos_id, "eos_token_id": eos_id,
        "torch_dtype": "bfloat16",
    }


def write_json(path: pathlib.Path, data: Any) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def save_checkpoint(
    folder: pathlib.Path, model: Llama, bos_id: int, eos_id: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", hf_config(model.config, bos_id, eos_id))
    write_json(folder / "generation_config.json", {
        "do_sample": False, "bos_token_id": bos_id, "eos_token_id": eos_id})
    write_safetensors(folder / "model.safetensors", model.state_dict())


def load_checkpoint(folder: pathlib.Path) -> Tuple[Llama, Dict[str, Any]]:
    """The model, in float32 with bf16 values, and its config.json."""
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    model = Llama(ModelConfig(**{name: stored[name] for name in names}))
    model.load_state_dict(read_safetensors(folder / "model.safetensors"))
    return model.eval(), stored


def sha256_of(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

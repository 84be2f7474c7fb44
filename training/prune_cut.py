"""Cuts what is not kept out of a model's tensors and its config.json."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Sequence

import torch

from training.model import Llama, ModelConfig
from training.prune_choice import Kept

# What the axes of each tensor count: hidden or intermediate channels, or what
# is never cut (vocabulary, heads * head_dim, head_dim).
_AXES = {
    "embed_tokens.weight": "-h", "lm_head.weight": "-h", "norm.weight": "h",
    "input_layernorm.weight": "h", "post_attention_layernorm.weight": "h",
    "q_proj.weight": "-h", "k_proj.weight": "-h", "v_proj.weight": "-h",
    "q_proj.bias": "-", "k_proj.bias": "-", "v_proj.bias": "-",
    "q_norm.weight": "-", "k_norm.weight": "-",
    "o_proj.weight": "h-", "o_proj.bias": "h",
    "gate_proj.weight": "ih", "up_proj.weight": "ih", "down_proj.weight": "hi",
    "gate_proj.bias": "i", "up_proj.bias": "i", "down_proj.bias": "h",
}
_LAYERS = "model.layers."


def source_name(name: str, layers: Sequence[int]) -> str:
    """The full model's tensor of which the decode model's `name` is a part."""
    if not name.startswith(_LAYERS):
        return name
    number, rest = name[len(_LAYERS):].split(".", 1)
    return f"{_LAYERS}{layers[int(number)]}.{rest}"


def cut_tensor(name: str, tensor: torch.Tensor, kept: Kept) -> torch.Tensor:
    """`name` is that of the decode model."""
    for axis, kind in enumerate(_AXES[".".join(name.split(".")[-2:])]):
        if kind == "-":
            continue
        indices = (kept.hidden if kind == "h" else
                   kept.intermediate[int(name.split(".")[2])])
        if len(indices) != tensor.shape[axis]:
            tensor = tensor.index_select(
                axis, torch.tensor(indices, device=tensor.device))
    return tensor


def cut_config(config: ModelConfig, kept: Kept) -> ModelConfig:
    return dataclasses.replace(
        config, hidden_size=len(kept.hidden),
        intermediate_size=len(kept.intermediate[0]),
        num_hidden_layers=len(kept.intermediate))


def cut_stated(
    raw: Dict[str, Any], config: ModelConfig, layers: List[int]
) -> Dict[str, Any]:
    """config.json of the decode model; `config` is its own. All that is not
    about widths and depth stays as the full model states it."""
    result = {
        **raw, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_key_value_heads}
    if isinstance(raw.get("layer_types"), list):
        result["layer_types"] = [raw["layer_types"][at] for at in layers]
    if type(raw.get("max_window_layers")) is int:  # Qwen's; the window is off
        result["max_window_layers"] = min(
            raw["max_window_layers"], config.num_hidden_layers)
    return result


def cut(model: Llama, kept: Kept) -> Llama:
    """The pruned model of all layers: rows and columns of the full one's."""
    pruned = Llama(cut_config(model.config, kept))
    pruned.load_state_dict({
        name: cut_tensor(name, tensor, kept)
        for name, tensor in model.state_dict().items()})
    return pruned

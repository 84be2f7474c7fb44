"""Width pruning: the same layers and heads, fewer channels.

The importance of a channel is measured, not guessed (as Minitron does it): the
model reads calibration text; a hidden channel's score is its activation after
both norms of every layer, an intermediate channel's its input to down_proj.
Each is the L2 norm over samples of the mean magnitude over tokens. The
kept channels stay in their order.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Dict, List, Sequence, Tuple

import torch

from training import checkpoint
from training.model import Llama, ModelConfig


@dataclasses.dataclass
class Importance:
    hidden: torch.Tensor              # [hidden_size]
    intermediate: List[torch.Tensor]  # per layer, [intermediate_size]


@dataclasses.dataclass(frozen=True)
class Kept:
    """Indices of the channels kept, ascending."""

    hidden: List[int]
    intermediate: List[List[int]]  # per layer


def odd_width(width: int, share: float) -> int:
    """The odd number next to width * share.

    Odd on purpose: published pairs have odd widths, and what is served here
    must take the same way through the server as they do.
    """
    return 2 * int(width * share / 2) + 1


def measure_importance(
    model: Llama, samples: Sequence[Tuple[torch.Tensor, torch.Tensor]]
) -> Importance:
    """`samples`: pairs (ids [1, num_tokens], positions [1, num_tokens])."""
    layers = model.model.layers
    hidden = torch.zeros(model.config.hidden_size)
    intermediate = [torch.zeros(model.config.intermediate_size)
                    for _ in layers]

    def add(total: torch.Tensor, activation: torch.Tensor) -> None:
        # [1, num_tokens, width] -> the mean over tokens, squared and summed.
        total += activation[0].float().abs().mean(0).pow(2)

    hooks = []
    hidden_per_norm: List[torch.Tensor] = []
    for index, layer in enumerate(layers):
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            total = torch.zeros_like(hidden)
            hidden_per_norm.append(total)
            hooks.append(norm.register_forward_hook(
                lambda _module, _inputs, output, total=total:
                add(total, output)))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, inputs, index=index:
            add(intermediate[index], inputs[0])))
    with torch.no_grad():
        for ids, positions in samples:
            model(ids, positions)
    for hook in hooks:
        hook.remove()
    for total in hidden_per_norm:
        hidden += total.sqrt()
    return Importance(hidden, [total.sqrt() for total in intermediate])


def choose(importance: Importance, num_hidden: int, num_inner: int) -> Kept:
    def top(scores: torch.Tensor, count: int) -> List[int]:
        return sorted(torch.topk(scores, count).indices.tolist())

    return Kept(top(importance.hidden, num_hidden),
                [top(scores, num_inner) for scores in importance.intermediate])


def cut(model: Llama, kept: Kept) -> Llama:
    """The pruned model: rows and columns of the full model's weights."""
    config = dataclasses.replace(
        model.config, hidden_size=len(kept.hidden),
        intermediate_size=len(kept.intermediate[0]))
    pruned = Llama(config)
    state: Dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        state[name] = _cut_tensor(name, tensor, kept).clone()
    pruned.load_state_dict(state)
    return pruned


def _cut_tensor(name: str, tensor: torch.Tensor, kept: Kept) -> torch.Tensor:
    if ".mlp." in name:
        inner = kept.intermediate[int(name.split(".")[2])]
        if "down_proj" in name:
            return tensor[kept.hidden][:, inner]
        return tensor[inner][:, kept.hidden]
    if tensor.dim() == 1 or "o_proj" in name:  # norms; [hidden, heads * dim]
        return tensor[kept.hidden]
    return tensor[:, kept.hidden]  # embeddings, head, q, k, v


def write_manifest(
    path: pathlib.Path, full: pathlib.Path, decode: pathlib.Path,
    configs: Tuple[ModelConfig, ModelConfig], kept: Kept,
) -> None:
    """pair.json: how the decode model was cut from the full one."""
    num_layers = configs[0].num_hidden_layers
    checkpoint.write_json(path, {
        "full": _describe(full, configs[0]),
        "decode": _describe(decode, configs[1]),
        "kv_map": "identity",
        "layer_map": list(range(num_layers)),
        "kept_hidden": kept.hidden,
        "kept_intermediate": kept.intermediate,
    })


def _describe(folder: pathlib.Path, config: ModelConfig) -> Dict[str, object]:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    return {
        "folder": folder.name, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "sha256": {name: checkpoint.sha256_of(folder / name)
                   for name in names},
    }

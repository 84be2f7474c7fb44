"""How much each channel matters: measured on calibration text, as in Minitron.

A hidden channel is scored where it is normed, an intermediate one where it
enters down_proj: the mean magnitude over tokens, its L2 norm over samples, and
for hidden channels the sum over both norms of all layers.

All samples go through one layer before the next one is loaded, so memory
holds one layer and the samples' activations, whatever the model's depth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from training.checkpoint import EMBEDDING, set_tensor
from training.model import DecoderLayer, Llama, ModelConfig, rope_tables
from training.prune_choice import Importance
from training.safetensors_file import TensorReader

# ids and positions, both [1, num_tokens].
Sample = Tuple[torch.Tensor, torch.Tensor]
Log = Callable[[str], None]

_BATCH_TOKENS = 2048


class StoredLayers:
    """A checkpoint's layers, read when asked for and not kept."""

    def __init__(
        self, reader: TensorReader, config: ModelConfig,
        dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> None:
        self.reader = reader
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)

    def embedding(self) -> torch.Tensor:
        return self.reader.read(EMBEDDING, self.dtype)

    def layer(self, index: int) -> nn.Module:
        layer = DecoderLayer(self.config, device="meta")
        for name in layer.state_dict():
            tensor = self.reader.read(
                f"model.layers.{index}.{name}", self.dtype)
            set_tensor(layer, name, tensor.to(self.device))
        return layer


class ModelLayers(StoredLayers):
    """The same of a model in memory."""

    def __init__(self, model: Llama) -> None:
        self.model = model.model
        self.config = model.config
        weight = self.model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device

    def embedding(self) -> torch.Tensor:
        return self.model.embed_tokens.weight.detach()

    def layer(self, index: int) -> nn.Module:
        return self.model.layers[index]


class _Means:
    """Means over tokens of what one layer computes, one row per sample."""

    def __init__(self, layer: nn.Module, num_samples: int, signed: bool
                 ) -> None:
        self.num_samples = num_samples
        self.signed = signed
        self.first = 0  # sample of the batch that is running
        self.rows: Dict[str, torch.Tensor] = {}
        self._hooks = [
            layer.input_layernorm.register_forward_hook(
                lambda _module, _inputs, output: self._add("first", output)),
            layer.post_attention_layernorm.register_forward_hook(
                lambda _module, _inputs, output: self._add("second", output)),
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _module, inputs: self._add("inner", inputs[0]))]

    def _add(self, name: str, activation: torch.Tensor) -> None:
        values = activation.float()
        means = (values if self.signed else values.abs()).mean(1).double()
        if name not in self.rows:
            self.rows[name] = torch.zeros(
                self.num_samples, means.shape[1], dtype=torch.float64)
        end = self.first + len(means)
        self.rows[name][self.first:end] = means.cpu()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclasses.dataclass
class Measured:
    importance: Importance
    # Per layer, 1 - the cosine between its input and its output, over tokens.
    influence: List[float]


def measure(
    source: StoredLayers, samples: Sequence[Sample], signed: bool = False,
    spill: Optional[pathlib.Path] = None, log: Log = lambda line: None,
) -> Measured:
    """`signed` is what the paper's own code does: means keep their sign, and
    norms are summed per sample, before the L2 norm over samples. `spill` is a
    folder for a temporary file of the activations."""
    config = source.config
    num_samples = len(samples)
    hidden = torch.zeros(
        num_samples if signed else 1, config.hidden_size, dtype=torch.float64)
    inner: List[torch.Tensor] = []
    influence: List[float] = []
    with torch.no_grad(), _activations(source, samples, spill) as states:
        for index in range(config.num_hidden_layers):
            log(f"layer {index + 1} of {config.num_hidden_layers}")
            layer = source.layer(index)
            means = _Means(layer, num_samples, signed)
            try:
                cosine = _run_layer(layer, source, samples, states, means)
            finally:
                means.close()
            del layer  # before the next one is read
            for name in ("first", "second"):
                rows = means.rows[name]
                hidden += rows.abs() if signed else rows.norm(
                    dim=0, keepdim=True)
            inner.append(means.rows["inner"].norm(dim=0))
            influence.append(1.0 - cosine)
    return Measured(Importance(hidden.norm(dim=0), inner), influence)


@contextlib.contextmanager
def _activations(
    source: StoredLayers, samples: Sequence[Sample],
    spill: Optional[pathlib.Path],
) -> Iterator[torch.Tensor]:
    """[tokens of all samples, hidden_size], embedded; the layers' inputs."""
    ids = torch.cat([ids[0] for ids, _ in samples])
    shape = (len(ids), source.config.hidden_size)
    with contextlib.ExitStack() as stack:
        if spill is None:
            states = torch.empty(shape, dtype=source.dtype)
        else:
            file = stack.enter_context(tempfile.TemporaryFile(dir=spill))
            bits = np.int16 if source.dtype == torch.bfloat16 else np.int32
            mapped = np.memmap(file, dtype=bits, mode="w+", shape=shape)
            states = torch.from_numpy(mapped).view(source.dtype)
        table = source.embedding()
        for begin in range(0, len(ids), _BATCH_TOKENS):
            part = ids[begin:begin + _BATCH_TOKENS].to(table.device)
            states[begin:begin + len(part)] = F.embedding(part, table)
        del table
        yield states


def _run_layer(
    layer: nn.Module, source: StoredLayers, samples: Sequence[Sample],
    states: torch.Tensor, means: _Means,
) -> float:
    """Replaces `states` by the layer's outputs; the mean cosine of the two."""
    config = source.config
    total, begin = 0.0, 0
    for first, count in _batches(samples):
        length = samples[first][0].shape[1]
        end = begin + count * length
        positions = torch.cat(
            [positions for _, positions in samples[first:first + count]])
        rope = rope_tables(
            positions.to(source.device), config.head_dim, config.rope_theta,
            config.rope_scaling)
        x = states[begin:end].view(count, length, -1).to(source.device)
        means.first = first
        out, _ = layer(x, rope, None, None)
        total += float(F.cosine_similarity(
            x.float(), out.float(), dim=-1).double().sum())
        states[begin:end] = out.reshape(count * length, -1)
        begin = end
    return total / len(states)


def _batches(samples: Sequence[Sample]) -> Iterator[Tuple[int, int]]:
    """(first, count) of neighbours of one length, few tokens together."""
    first = 0
    while first < len(samples):
        length = samples[first][0].shape[1]
        most = max(1, _BATCH_TOKENS // length)
        count = 1
        while (count < most and first + count < len(samples)
               and samples[first + count][0].shape[1] == length):
            count += 1
        yield first, count
        first += count


def magnitude(source: StoredLayers) -> Importance:
    """A baseline that reads no text: the L2 norm of a channel's weights, of
    the embedding and all matrices that read it or write it."""
    with torch.no_grad():
        hidden = _squares(source.embedding(), 0)
        inner: List[torch.Tensor] = []
        for index in range(source.config.num_hidden_layers):
            layer = source.layer(index)
            attention, mlp = layer.self_attn, layer.mlp
            for module in (attention.q_proj, attention.k_proj,
                           attention.v_proj, mlp.gate_proj, mlp.up_proj):
                hidden += _squares(module.weight, 0)
            for module in (attention.o_proj, mlp.down_proj):
                hidden += _squares(module.weight, 1)
            inner.append((_squares(mlp.gate_proj.weight, 1)
                          + _squares(mlp.up_proj.weight, 1)
                          + _squares(mlp.down_proj.weight, 0)).sqrt())
            del layer, attention, mlp, module
    return Importance(hidden.sqrt(), inner)


def _squares(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    """Sums along `dim`, in slices: squares of a large matrix are as large."""
    total = sum(
        part.float().pow(2).sum(0, dtype=torch.float64)
        for part in (matrix if dim == 0 else matrix.t()).split(4096))
    assert isinstance(total, torch.Tensor)
    return total.cpu()


def random_scores(config: ModelConfig, seed: int) -> Importance:
    """The other baseline: any channels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.rand(width, generator=generator, dtype=torch.float64)

    return Importance(draw(config.hidden_size),
                      [draw(config.intermediate_size)
                       for _ in range(config.num_hidden_layers)])

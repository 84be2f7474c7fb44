"""A Llama-style model with an explicit KV interface.

Names and shapes of the parameters are those of Hugging Face's
LlamaForCausalLM, so a state dict is a checkpoint. RoPE is the rotate-half
form. head_dim is stated, never derived: after width pruning,
num_heads * head_dim differs from hidden_size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import List, Optional, Tuple

import torch
from torch import nn
import torch.nn.functional as F

# One layer's keys and values, K as it is cached (after RoPE):
# two tensors of [batch, num_kv_heads, num_tokens, head_dim].
LayerKV = Tuple[torch.Tensor, torch.Tensor]

# Added to the score of a key that a query may not see. Finite, so that a row
# of padding, which sees nothing, stays a number.
MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale * self.weight.float()


def rope_tables(
    positions: torch.Tensor, head_dim: int, theta: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [batch, 1, num_tokens, head_dim], of [batch, num_tokens]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None, :, None] / (theta ** exponent)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        width, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, self.num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * head_dim, width, bias=False)

    def _split(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        batch, num_tokens, _ = x.shape
        return x.view(batch, num_tokens, num_heads, self.head_dim).transpose(1, 2)

    def forward(
        self,
        x: torch.Tensor,
        rope: Tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        past: Optional[LayerKV],
    ) -> Tuple[torch.Tensor, LayerKV]:
        q = apply_rope(self._split(self.q_proj(x), self.num_heads), *rope)
        k = apply_rope(self._split(self.k_proj(x), self.num_kv_heads), *rope)
        v = self._split(self.v_proj(x), self.num_kv_heads)
        if past is not None:
            k = torch.cat([past[0].to(k.dtype), k], dim=2)
            v = torch.cat([past[1].to(v.dtype), v], dim=2)
        kv = (k, v)
        batch, _, num_queries, _ = q.shape
        group = self.num_heads // self.num_kv_heads
        # The queries of one KV head side by side: one product, no copied keys.
        q = q.reshape(batch, self.num_kv_heads, group * num_queries, self.head_dim)
        scores = torch.matmul(q / math.sqrt(self.head_dim), k.transpose(2, 3))
        scores = scores.view(batch, self.num_kv_heads, group, num_queries, -1)
        weights = torch.softmax(scores.float() + mask, dim=-1).to(v.dtype)
        weights = weights.view(
            batch, self.num_kv_heads, group * num_queries, -1)
        out = torch.matmul(weights, v)
        out = out.view(batch, self.num_heads, num_queries, self.head_dim)
        out = out.transpose(1, 2).reshape(batch, num_queries, -1)
        return self.o_proj(out), kv


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        eps = config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)

    def forward(
        self,
        x: torch.Tensor,
        rope: Tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        past: Optional[LayerKV],
    ) -> Tuple[torch.Tensor, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class Decoder(nn.Module):
    """The part of the model that checkpoints name `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(
                config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        past: Optional[List[LayerKV]] = None,
        mask: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, List[LayerKV]]:
        """Runs `ids` [batch, num_tokens] after the tokens of `past`.

        Returns the normed hidden states [batch, num_tokens, hidden_size] and
        the KV of past and new tokens together. `mask`, broadcastable to
        [batch, kv_head, group, query, key], is added to the scores; without
        one, a query sees all of `past` and the new tokens up to itself.
        """
        if mask is None:
            num_past = 0 if past is None else past[0][0].shape[2]
            mask = causal_mask(ids.shape[1], num_past)
        rope = rope_tables(
            positions, self.config.head_dim, self.config.rope_theta)
        x = self.model.embed_tokens(ids)
        kv: List[LayerKV] = []
        for index, layer in enumerate(self.model.layers):
            layer_past = None if past is None else past[index]
            x, layer_kv = layer(x, rope, mask, layer_past)
            kv.append(layer_kv)
        return self.model.norm(x), kv

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.config.tie_word_embeddings:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)


def causal_mask(num_new: int, num_past: int = 0) -> torch.Tensor:
    """[num_new, num_past + num_new], 0 where a query may look."""
    query = torch.arange(num_new)[:, None] + num_past
    key = torch.arange(num_past + num_new)[None, :]
    return torch.where(key <= query, 0.0, MASKED)


def init_weights(model: Llama, seed: int) -> None:
    """Draws every matrix at 1/sqrt(fan_in), the ones that write at a tenth.

    The usual 0.02 is far too small for a width of about a hundred: attention
    then starts flat. Writing softly keeps the token itself the loudest thing
    in the residual stream, so that there is something to copy.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                std = parameter.shape[1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std *= 0.1
                parameter.normal_(0.0, std, generator=generator)


def count_parameters(model: Llama) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

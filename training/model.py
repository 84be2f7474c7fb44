"""A decoder of the Llama family with an explicit KV interface.

Names and shapes of the parameters are those of Hugging Face's
LlamaForCausalLM, Qwen2-, Qwen3- and MistralForCausalLM, so a state dict is a
checkpoint. RoPE is the rotate-half form. head_dim is stated, never derived:
after width pruning, num_heads * head_dim differs from hidden_size.
"""

from __future__ import annotations

import functools
import math
from typing import List, Optional, Tuple, Union

import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute

from training.model_config import ModelConfig, RopeScaling

Device = Optional[Union[str, torch.device]]

# One layer's keys and values, K as it is cached (after RoPE):
# two tensors of [batch, num_kv_heads, num_tokens, head_dim].
LayerKV = Tuple[torch.Tensor, torch.Tensor]

# Added to the score of a key that a query may not see. Finite, so that a row
# of padding, which sees nothing, stays a number.
MASKED = -1e9

# torch 2 has one fused product; before, the steps are written out.
_FUSED = hasattr(F, "scaled_dot_product_attention")


class RMSNorm(nn.Module):
    """Computed in float32; the result has the type of its input."""

    def __init__(self, width: int, eps: float, device: Device = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device=device))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight.float()).to(x.dtype)


@functools.lru_cache(maxsize=64)
def inverse_frequencies(
    head_dim: int, theta: float, scaling: Optional[RopeScaling]
) -> Tuple[float, ...]:
    """Of each rotation pair, in radians per position; in double, as served."""
    result = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2.0 * pair / head_dim)
        if scaling is not None:
            frequency = _scale_frequency(frequency, scaling)
        result.append(frequency)
    return tuple(result)


def _scale_frequency(frequency: float, scaling: RopeScaling) -> float:
    slowed = frequency / scaling.factor
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    if turns < scaling.low_freq_factor:
        return slowed
    if turns > scaling.high_freq_factor:
        return frequency
    keep = ((turns - scaling.low_freq_factor)
            / (scaling.high_freq_factor - scaling.low_freq_factor))
    return keep * frequency + (1 - keep) * slowed


def rope_tables(
    positions: torch.Tensor, head_dim: int, theta: float,
    scaling: Optional[RopeScaling] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [batch, 1, num_tokens, head_dim], of [batch, num_tokens]."""
    frequencies = torch.tensor(
        inverse_frequencies(head_dim, theta, scaling), dtype=torch.float32,
        device=positions.device)
    angles = positions.float()[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, device: Device = None) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        width = config.hidden_size
        q_size = self.num_heads * self.head_dim
        kv_size = self.num_kv_heads * self.head_dim
        bias = config.qkv_bias
        self.q_proj = nn.Linear(width, q_size, bias=bias, device=device)
        self.k_proj = nn.Linear(width, kv_size, bias=bias, device=device)
        self.v_proj = nn.Linear(width, kv_size, bias=bias, device=device)
        self.o_proj = nn.Linear(
            q_size, width, bias=config.output_bias, device=device)
        if config.qk_norm:
            eps = config.rms_norm_eps
            self.q_norm = RMSNorm(self.head_dim, eps, device)
            self.k_norm = RMSNorm(self.head_dim, eps, device)
        self.qk_norm = config.qk_norm

    def _split(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        batch, num_tokens, _ = x.shape
        return x.view(
            batch, num_tokens, num_heads, self.head_dim).transpose(1, 2)

    def forward(
        self,
        x: torch.Tensor,
        rope: Tuple[torch.Tensor, torch.Tensor],
        mask: Optional[torch.Tensor],
        past: Optional[LayerKV],
    ) -> Tuple[torch.Tensor, LayerKV]:
        q = self._split(self.q_proj(x), self.num_heads)
        k = self._split(self.k_proj(x), self.num_kv_heads)
        v = self._split(self.v_proj(x), self.num_kv_heads)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if past is not None:
            k = torch.cat([past[0].to(k.dtype), k], dim=2)
            v = torch.cat([past[1].to(v.dtype), v], dim=2)
        attend = fused_attention if _FUSED else plain_attention
        out = attend(q, k, v, mask).transpose(1, 2)
        return self.o_proj(out.reshape(*x.shape[:2], -1)), (k, v)


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    mask: Optional[torch.Tensor],
) -> torch.Tensor:
    """[batch, num_heads, num_queries, head_dim], as q is.

    Without a mask, the queries are the last tokens and see what is before.
    """
    batch, num_heads, num_queries, head_dim = q.shape
    num_kv_heads, num_keys = k.shape[1], k.shape[2]
    group = num_heads // num_kv_heads
    if mask is None:
        mask = causal_mask(num_queries, num_keys - num_queries, q.device)
    # The queries of one KV head side by side: one product, no copied keys.
    q = q.reshape(batch, num_kv_heads, group * num_queries, head_dim)
    scores = torch.matmul(q / math.sqrt(head_dim), k.transpose(2, 3))
    scores = scores.view(batch, num_kv_heads, group, num_queries, num_keys)
    weights = torch.softmax(scores.float() + mask, dim=-1).to(v.dtype)
    weights = weights.view(batch, num_kv_heads, group * num_queries, num_keys)
    return torch.matmul(weights, v).view(
        batch, num_heads, num_queries, head_dim)


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    mask: Optional[torch.Tensor],
) -> torch.Tensor:
    """plain_attention by torch 2's own product."""
    batch, num_heads, num_queries, _ = q.shape
    num_kv_heads, num_keys = k.shape[1], k.shape[2]
    group = num_heads // num_kv_heads
    if group > 1:
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
    is_causal = mask is None and num_queries == num_keys
    if mask is None and not is_causal and num_queries > 1:
        mask = causal_mask(num_queries, num_keys - num_queries, q.device)
    if mask is not None:
        if mask.dim() == 5 and mask.shape[1:3] == (1, 1):
            mask = mask[:, 0]
        elif mask.dim() > 2:
            mask = mask.expand(
                batch, num_kv_heads, group, num_queries, num_keys).reshape(
                    batch, num_heads, num_queries, num_keys)
        # -1e9 is beyond float16; what it stands for is "the lowest".
        mask = mask.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
    # Under autocast the three may differ.
    return F.scaled_dot_product_attention(
        q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=is_causal)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, device: Device = None) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        bias = config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias, device=device)
        self.up_proj = nn.Linear(width, inner, bias=bias, device=device)
        self.down_proj = nn.Linear(inner, width, bias=bias, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, device: Device = None) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, device)
        self.mlp = MLP(config, device)
        self.input_layernorm = RMSNorm(width, eps, device)
        self.post_attention_layernorm = RMSNorm(width, eps, device)

    def forward(
        self,
        x: torch.Tensor,
        rope: Tuple[torch.Tensor, torch.Tensor],
        mask: Optional[torch.Tensor],
        past: Optional[LayerKV],
    ) -> Tuple[torch.Tensor, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class Decoder(nn.Module):
    """The part of the model that checkpoints name `model.`."""

    def __init__(self, config: ModelConfig, device: Device = None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, device=device)
        self.layers = nn.ModuleList(
            DecoderLayer(config, device)
            for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device)


class Llama(nn.Module):
    """`gradient_checkpointing`: the backward pass computes each layer again
    instead of keeping its activations."""

    def __init__(self, config: ModelConfig, device: Device = None) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.model = Decoder(config, device)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(
                config.hidden_size, config.vocab_size, bias=False,
                device=device)

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
        config = self.config
        rope = rope_tables(positions, config.head_dim, config.rope_theta,
                           config.rope_scaling)
        if mask is None and not _FUSED:  # once, not in every layer
            num_past = 0 if past is None else past[0][0].shape[2]
            mask = causal_mask(ids.shape[1], num_past, ids.device)
        x = self.model.embed_tokens(ids)
        kv: List[LayerKV] = []
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for index, layer in enumerate(self.model.layers):
            layer_past = None if past is None else past[index]
            if again:
                x, layer_kv = recompute(
                    layer, x, rope, mask, layer_past, use_reentrant=False)
            else:
                x, layer_kv = layer(x, rope, mask, layer_past)
            kv.append(layer_kv)
        return self.model.norm(x), kv

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.config.tie_word_embeddings:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)


def causal_mask(
    num_new: int, num_past: int = 0, device: Device = None
) -> torch.Tensor:
    """[num_new, num_past + num_new], 0 where a query may look."""
    query = torch.arange(num_new, device=device)[:, None] + num_past
    key = torch.arange(num_past + num_new, device=device)[None, :]
    return torch.where(key <= query, 0.0, MASKED)


def init_weights(model: Llama, seed: int) -> None:
    """Draws every matrix at 1/sqrt(fan_in), the ones that write at a tenth;
    biases are zero.

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
            elif name.endswith(".bias"):
                parameter.zero_()


def count_parameters(model: Llama) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

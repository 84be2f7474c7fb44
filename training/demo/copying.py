"""Starts a model off with a copying circuit instead of waiting for one.

Copying what followed the last occurrence of a token takes two heads in
sequence: one that looks at the previous token, and one that looks for the
place whose previous token is the current one. Gradient descent finds them
after many steps, most of the budget of a small machine. So they are written
into the first two layers of the random model, and training starts there.
Nothing is frozen; everything is trained on.

The residual stream is divided for that: channel 0 is a constant, the last
`head_dim` channels receive the previous token, the others hold the token.
"""

from __future__ import annotations

import torch

from training.model import Llama

_CONSTANT = 0.5      # channel 0 of every embedding
_POINTING = 1.6      # weights that make the previous-token head sharp
_NUM_POINTING = 6    # RoPE pairs it uses, the fastest
_PREVIOUS = 0.1      # how loudly the previous token is written
_MATCHING = 2.0      # weights of the match between tokens
_COPYING = 0.25      # how loudly the copied token is written


def seed_copying(model: Llama) -> None:
    """Needs two layers and a width of at least three heads."""
    config = model.config
    head_dim, width = config.head_dim, config.hidden_size
    if config.num_attention_heads != config.num_key_value_heads:
        raise ValueError("the copying circuit is written for one query head "
                         "per KV head")
    previous_at = width - head_dim
    with torch.no_grad():
        embeddings = model.model.embed_tokens.weight
        embeddings[:, 0] = _CONSTANT
        embeddings[:, previous_at:] = 0.0
        _write_previous_token_head(model, previous_at)
        _write_matching_heads(model, previous_at)


def _write_previous_token_head(model: Llama, previous_at: int) -> None:
    """Head 0 of layer 0. The query is the constant; the key is the constant
    turned by one position, so that their product peaks one position back."""
    config = model.config
    head_dim, half = config.head_dim, config.head_dim // 2
    attention = model.model.layers[0].self_attn
    q, k = attention.q_proj.weight, attention.k_proj.weight
    q[:head_dim] = 0.0
    k[:head_dim] = 0.0
    for pair in range(_NUM_POINTING):
        angle = torch.tensor(config.rope_theta ** (-pair / half))
        q[pair, 0] = _POINTING
        k[pair, 0] = _POINTING * torch.cos(angle)
        k[pair + half, 0] = _POINTING * torch.sin(angle)
    source_at = previous_at - head_dim
    attention.v_proj.weight[:head_dim] = 0.0
    attention.o_proj.weight[:, :head_dim] = 0.0
    for index in range(head_dim):
        attention.v_proj.weight[index, source_at + index] = 1.0
        attention.o_proj.weight[previous_at + index, index] = _PREVIOUS


def _write_matching_heads(model: Llama, previous_at: int) -> None:
    """Heads of layer 1, as many as it takes to copy all token channels.

    Only RoPE's slow pairs are used: a match must not depend on the distance.
    """
    config = model.config
    head_dim, half = config.head_dim, config.head_dim // 2
    attention = model.model.layers[1].self_attn
    slow = [pair for pair in range(half)
            if config.rope_theta ** (-pair / half) < 0.01]
    channels = slow + [pair + half for pair in slow]
    source_at = previous_at - head_dim
    for head in range(min(config.num_attention_heads, previous_at // head_dim)):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        for matrix in (attention.q_proj, attention.k_proj, attention.v_proj):
            matrix.weight[rows] = 0.0
        attention.o_proj.weight[:, rows] = 0.0
        for index, channel in enumerate(channels):
            # Each head matches on other channels of the token.
            at = (index + 11 * head) % head_dim
            row = head * head_dim + channel
            attention.q_proj.weight[row, source_at + at] = _MATCHING
            attention.k_proj.weight[row, previous_at + at] = _MATCHING
        for index in range(head_dim):
            row = head * head_dim + index
            attention.v_proj.weight[row, row] = 1.0
            attention.o_proj.weight[row, row] = _COPYING

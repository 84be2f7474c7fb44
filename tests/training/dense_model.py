"""The model's formulas in numpy, in double precision, for comparison.

Nothing of training.model is used; a state dict's tensors and a config are
what comes in.
"""

import math

import numpy as np


def frequencies(config):
    """Rotation per position of each pair, as Llama 3.1's paper has it."""
    half = config.head_dim // 2
    plain = config.rope_theta ** (-np.arange(half) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    wavelengths = 2 * math.pi / plain
    longest = scaling.original_max_positions / scaling.low_freq_factor
    shortest = scaling.original_max_positions / scaling.high_freq_factor
    result = []
    for frequency, wavelength in zip(plain, wavelengths):
        if wavelength > longest:
            result.append(frequency / scaling.factor)
        elif wavelength < shortest:
            result.append(frequency)
        else:
            smooth = ((scaling.original_max_positions / wavelength
                       - scaling.low_freq_factor)
                      / (scaling.high_freq_factor - scaling.low_freq_factor))
            result.append((1 - smooth) * frequency / scaling.factor
                          + smooth * frequency)
    return np.array(result)


def numpy_state(model):
    return {name: tensor.detach().double().numpy()
            for name, tensor in model.state_dict().items()}


def run(state, config, ids, positions=None):
    """Of one sample: logits, and what each layer computes, as a dict of lists
    [layer] of first, second (the norms' outputs), inner, entering, leaving."""
    count = len(ids)
    positions = np.arange(count) if positions is None else positions
    angles = np.outer(positions, frequencies(config))
    turn = np.exp(1j * angles)  # a pair is one complex number
    half = config.head_dim // 2
    seen = {name: [] for name in
            ("first", "second", "inner", "entering", "leaving")}

    def norm(x, weight):
        square = (x ** 2).sum(-1, keepdims=True) / x.shape[-1]
        return x / np.sqrt(square + config.rms_norm_eps) * weight

    def linear(x, name):
        y = x @ state[name + ".weight"].T
        return y + state[name + ".bias"] if name + ".bias" in state else y

    def turned(x):
        z = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([z.real, z.imag], axis=1)

    x = state["model.embed_tokens.weight"][np.asarray(ids)]
    for index in range(config.num_hidden_layers):
        at = f"model.layers.{index}."
        seen["entering"].append(x)
        h = norm(x, state[at + "input_layernorm.weight"])
        seen["first"].append(h)
        q, k, v = (linear(h, f"{at}self_attn.{which}_proj")
                   for which in "qkv")
        heads = []
        for head in range(config.num_attention_heads):
            group = config.num_attention_heads // config.num_key_value_heads
            size = config.head_dim
            mine = slice(head * size, (head + 1) * size)
            shared = slice(head // group * size, (head // group + 1) * size)
            qh, kh, vh = q[:, mine], k[:, shared], v[:, shared]
            if config.qk_norm:
                qh = norm(qh, state[at + "self_attn.q_norm.weight"])
                kh = norm(kh, state[at + "self_attn.k_norm.weight"])
            qh, kh = turned(qh), turned(kh)
            out = np.zeros_like(qh)
            for row in range(count):
                scores = kh[:row + 1] @ qh[row] / math.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[row] = weights @ vh[:row + 1] / weights.sum()
            heads.append(out)
        x = x + linear(np.concatenate(heads, 1), at + "self_attn.o_proj")
        h = norm(x, state[at + "post_attention_layernorm.weight"])
        seen["second"].append(h)
        gate = linear(h, at + "mlp.gate_proj")
        inner = gate / (1 + np.exp(-gate)) * linear(h, at + "mlp.up_proj")
        seen["inner"].append(inner)
        x = x + linear(inner, at + "mlp.down_proj")
        seen["leaving"].append(x)
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    return norm(x, state["model.norm.weight"]) @ head.T, seen


def importance(state, config, rows):
    """Scores of hidden [H] and intermediate channels [L, I], and the block
    influence [L]; rows of ids or of (ids, positions)."""
    hidden = np.zeros(config.hidden_size)
    inner = np.zeros((config.num_hidden_layers, config.intermediate_size))
    runs = [run(state, config, *(row if isinstance(row, tuple) else (row,)))[1]
            for row in rows]
    influence = []
    for index in range(config.num_hidden_layers):
        for name in ("first", "second"):
            hidden += np.sqrt(sum(
                np.abs(seen[name][index]).mean(0) ** 2 for seen in runs))
        inner[index] = np.sqrt(sum(
            np.abs(seen["inner"][index]).mean(0) ** 2 for seen in runs))
        cosines = []
        for seen in runs:
            a, b = seen["entering"][index], seen["leaving"][index]
            cosines += list((a * b).sum(1) / np.linalg.norm(a, axis=1)
                            / np.linalg.norm(b, axis=1))
        influence.append(1 - np.mean(cosines))
    return hidden, inner, np.array(influence)

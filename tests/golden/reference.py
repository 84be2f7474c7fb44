"""An independent reference of what the server computes, in PyTorch.

Written from the published descriptions of the architectures (Llama, Llama 3.1's
RoPE scaling, Qwen2, Qwen3, Mistral), and of OverFill (arXiv 2508.08446), not
from the server's code: it reads config.json, safetensors and tokenizer.json by
itself. Everything is computed in float64, from the weights as they are stored,
without blocks, batches or chunks. K and V are kept exactly, or as a store of
bf16 keeps them.

It needs nothing but Debian's python3-torch.
"""

import json
import math
import os
import struct

import torch

_STORED_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def read_safetensors(path):
    """The tensors of one file by name, in float64."""
    tensors = {}
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
        data = bytearray(file.read())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype = _STORED_TYPES[entry["dtype"]]
        count = math.prod(entry["shape"])
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=begin)
        assert flat.numel() * flat.element_size() == end - begin, name
        tensors[name] = flat.reshape(entry["shape"]).to(torch.float64)
    return tensors


def read_checkpoint(directory):
    index_path = os.path.join(directory, "model.safetensors.index.json")
    if not os.path.exists(index_path):
        return read_safetensors(os.path.join(directory, "model.safetensors"))
    with open(index_path) as file:
        weight_map = json.load(file)["weight_map"]
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_safetensors(
                os.path.join(directory, shard)).items():
            assert weight_map[name] == shard, name
            tensors[name] = tensor
    return tensors


def read_token_mask(directory, vocab_size):
    """[vocab_size] bool: whether the id has a token; others are never said."""
    with open(os.path.join(directory, "tokenizer.json")) as file:
        tokenizer = json.load(file)
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    for token_id in tokenizer["model"]["vocab"].values():
        mask[token_id] = True
    for token in tokenizer.get("added_tokens", []):
        mask[token["id"]] = True
    return mask


class Config:
    """config.json in the spelling of transformers 4 or 5."""

    def __init__(self, directory):
        with open(os.path.join(directory, "config.json")) as file:
            raw = json.load(file)
        self.architecture = raw["architectures"][0]
        self.num_layers = raw["num_hidden_layers"]
        self.hidden_size = raw["hidden_size"]
        self.num_heads = raw["num_attention_heads"]
        self.num_kv_heads = raw.get("num_key_value_heads") or self.num_heads
        self.head_dim = (raw.get("head_dim") or
                         self.hidden_size // self.num_heads)
        self.vocab_size = raw["vocab_size"]
        self.norm_eps = raw["rms_norm_eps"]
        self.tied = raw.get("tie_word_embeddings", False)
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        self.rope_theta = rope.get("rope_theta") or raw["rope_theta"]
        kind = rope.get("rope_type") or rope.get("type") or "default"
        assert kind in ("default", "llama3"), kind
        self.llama3_rope = rope if kind == "llama3" else None
        assert raw.get("hidden_act", "silu") == "silu"


def inverse_frequencies(config):
    """[head_dim / 2] radians per position of each rotated pair."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    frequencies = config.rope_theta**(-exponents / config.head_dim)
    rope = config.llama3_rope
    if rope is None:
        return frequencies
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    result = []
    for frequency in frequencies.tolist():
        # Turns that this pair makes over the context it was trained on.
        turns = original * frequency / (2 * math.pi)
        if turns < low:
            keep = 0.0
        elif turns > high:
            keep = 1.0
        else:
            keep = (turns - low) / (high - low)
        scaled = frequency / rope["factor"]
        result.append(keep * frequency + (1 - keep) * scaled)
    return torch.tensor(result, dtype=torch.float64)


def rms_norm(x, gain, eps):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def rotate(x, angles):
    """x [T, heads, D]; pair i is the elements i and i + D / 2."""
    cos, sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [first * cos - second * sin, second * cos + first * sin], dim=-1)


class Cache:
    """K, after norm and rotation, and V of the positions so far, by layer."""

    def __init__(self, num_layers, stored=torch.float64):
        self.stored = stored
        self.keys = [None] * num_layers  # each [n, Hkv, D]
        self.values = [None] * num_layers

    def append(self, layer, keys, values):
        keys = keys.to(self.stored).double()
        values = values.to(self.stored).double()
        if self.keys[layer] is None:
            self.keys[layer], self.values[layer] = keys, values
        else:
            self.keys[layer] = torch.cat([self.keys[layer], keys])
            self.values[layer] = torch.cat([self.values[layer], values])
        return self.keys[layer], self.values[layer]

    def num_tokens(self):
        return 0 if self.keys[0] is None else len(self.keys[0])


class Model:
    """One causal language model."""

    def __init__(self, directory):
        self.config = Config(directory)
        self.tensors = read_checkpoint(directory)
        self.token_mask = read_token_mask(directory, self.config.vocab_size)
        self.frequencies = inverse_frequencies(self.config)

    def new_cache(self, stored=torch.float64):
        return Cache(self.config.num_layers, stored)

    def _linear(self, name, x):
        y = x @ self.tensors[name + ".weight"].T
        bias = self.tensors.get(name + ".bias")
        return y if bias is None else y + bias

    def _norm(self, name, x):
        return rms_norm(x, self.tensors[name + ".weight"],
                        self.config.norm_eps)

    def _attention(self, layer, x, angles, cache):
        config, prefix = self.config, f"model.layers.{layer}.self_attn."
        dim, num_rows = config.head_dim, len(x)

        def heads(name):
            return self._linear(prefix + name, x).reshape(num_rows, -1, dim)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        if config.architecture == "Qwen3ForCausalLM":
            q, k = self._norm(prefix + "q_norm", q), self._norm(
                prefix + "k_norm", k)
        q, k = rotate(q, angles), rotate(k, angles)
        keys, values = cache.append(layer, k, v)
        group = config.num_heads // config.num_kv_heads
        keys = keys.repeat_interleave(group, dim=1)
        values = values.repeat_interleave(group, dim=1)
        scores = torch.einsum("thd,shd->hts", q, keys) / math.sqrt(dim)
        past = len(keys) - num_rows
        visible = torch.ones(num_rows, len(keys), dtype=torch.bool).tril(past)
        scores = scores.masked_fill(~visible, -math.inf)
        mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), values)
        return self._linear(prefix + "o_proj", mixed.reshape(num_rows, -1))

    def _mlp(self, layer, x):
        prefix = f"model.layers.{layer}.mlp."
        gate = self._linear(prefix + "gate_proj", x)
        return self._linear(
            prefix + "down_proj",
            gate * torch.sigmoid(gate) * self._linear(prefix + "up_proj", x))

    def forward(self, token_ids, cache):
        """Logits [T, V] of the next positions; their KV joins the cache."""
        begin = cache.num_tokens()
        positions = torch.arange(begin, begin + len(token_ids)).double()
        angles = positions[:, None] * self.frequencies
        embedding = self.tensors["model.embed_tokens.weight"]
        x = embedding[torch.tensor(token_ids, dtype=torch.long)]
        for layer in range(self.config.num_layers):
            prefix = f"model.layers.{layer}."
            normed = self._norm(prefix + "input_layernorm", x)
            x = x + self._attention(layer, normed, angles, cache)
            normed = self._norm(prefix + "post_attention_layernorm", x)
            x = x + self._mlp(layer, normed)
        x = self._norm("model.norm", x)
        head = embedding if self.config.tied else self.tensors[
            "lm_head.weight"]
        return x @ head.T


class KvMap:
    """How the full model's KV becomes the decode model's."""

    def __init__(self, full_config, path=None):
        self.layers = list(range(full_config.num_layers))
        self.maps = None
        if path is None:
            return
        with open(path) as file:
            raw = json.load(file)
        self.layers = raw.get("layers", self.layers)
        if raw["kind"] == "projection":
            self.maps = read_safetensors(
                os.path.join(os.path.dirname(path), raw["file"]))

    def apply(self, cache):
        result = Cache(len(self.layers), cache.stored)
        for layer, source in enumerate(self.layers):
            keys, values = cache.keys[source], cache.values[source]
            if self.maps is not None:
                keys = self._project(f"layers.{layer}.k", keys)
                values = self._project(f"layers.{layer}.v", values)
            result.append(layer, keys, values)
        return result

    def _project(self, name, x):
        """One map over all of a token's KV heads side by side."""
        weight = self.maps[name]
        flat = x.reshape(len(x), -1) @ weight.T
        return flat.reshape(len(x), -1, x.shape[-1])


def path_logits(path, full, decode, kv_map, prompt, answer,
                stored=torch.float64):
    """Logits [len(answer), V] from which each token of `answer` was chosen.

    Teacher-forced: row i follows the prompt and the first i tokens of the
    answer, whoever chose them. `stored` is the type of K and V.
    """
    if path == "two_stage":
        cache = full.new_cache(stored)
        first = full.forward(prompt, cache)[-1:]
        if len(answer) == 1:
            return first
        rest = decode.forward(answer[:-1], kv_map.apply(cache))
        return torch.cat([first, rest])
    model = {"full": full, "pruned": decode}[path]
    logits = model.forward(list(prompt) + list(answer[:-1]),
                           model.new_cache(stored))
    return logits[len(prompt) - 1:]


def best_token(logits, token_mask):
    """The lowest id among the largest logits of real tokens."""
    return int(logits.masked_fill(~token_mask, -math.inf).argmax())


# Two logits closer than this share of the largest one are a tie: bf16 has
# eight bits of precision.
TIE = 2.0**-7


class AnswerCheck:
    """Tokens that somebody chose greedily, beside the reference's logits."""

    def __init__(self):
        self.num_tokens = 0
        self.num_ties = 0  # differing tokens where the reference's best tie
        self.errors = []

    def add(self, what, answer, logits, token_mask):
        real = logits.masked_fill(~token_mask, -math.inf)
        scale = logits.abs().amax(-1)
        for i, token in enumerate(answer):
            self.num_tokens += 1
            best = best_token(logits[i], token_mask)
            if token == best:
                continue
            # At least the distance of the two best.
            gap = float(real[i, best] - real[i, token])
            if gap < TIE * float(scale[i]):
                self.num_ties += 1
            else:
                self.errors.append(
                    f"{what}: token {i} is {token}, the reference says {best}"
                    f" by {gap:.4f}, max |logit| {float(scale[i]):.3f}")

    def tie_rate(self):
        return self.num_ties / max(1, self.num_tokens)

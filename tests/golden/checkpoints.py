"""Writes small random checkpoints in the Hugging Face layout.

Sizes are odd on purpose, and drawn anew from the generator's seed: a test that
fails prints the seed that brings the same checkpoints back.
"""

import json
import math
import os
import random
import struct

import torch

STORED = {
    "float32": ("F32", torch.float32),
    "float16": ("F16", torch.float16),
    "bfloat16": ("BF16", torch.bfloat16),
}

NUM_MERGES = 12
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
NUM_TOKENS = 256 + NUM_MERGES + len(SPECIAL_TOKENS)

# The pre-tokenizer pattern of Llama 3.
_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _byte_letters():
    """The printable letter that byte-level BPE writes for each byte."""
    kept = (list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) +
            list(range(0xAE, 0x100)))
    letters, extra = {}, 0
    for byte in range(256):
        if byte in kept:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(0x100 + extra)
            extra += 1
    return [letters[byte] for byte in range(256)]


def write_tokenizer(directory):
    """A small but complete byte-level BPE tokenizer of NUM_TOKENS ids."""
    letters = _byte_letters()
    vocab = {letter: i for i, letter in enumerate(letters)}
    merges = []
    for left, right in ["th", "he", "in", "er", "an", "re", "on", "at", "en",
                        "nd", "ti", "es"][:NUM_MERGES]:
        merges.append([left, right])
        vocab[left + right] = len(vocab)
    added = [{
        "id": len(vocab) + i, "content": content, "single_word": False,
        "lstrip": False, "rstrip": False, "normalized": False, "special": True
    } for i, content in enumerate(SPECIAL_TOKENS)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": _PATTERN},
             "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False,
             "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                    "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": merges},
    }
    _write_json(directory, "tokenizer.json", tokenizer)
    _write_json(directory, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[1]})


def write_safetensors(path, tensors, stored="float32"):
    name, dtype = STORED[stored]
    header, pieces, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for key, tensor in tensors.items():
        raw = tensor.to(dtype).contiguous().view(
            torch.int32 if dtype == torch.float32 else torch.int16)
        raw = raw.numpy().tobytes()
        header[key] = {"dtype": name, "shape": list(tensor.shape),
                       "data_offsets": [offset, offset + len(raw)]}
        pieces.append(raw)
        offset += len(raw)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for piece in pieces:
            file.write(piece)


def _write_json(directory, name, value):
    with open(os.path.join(directory, name), "w") as file:
        json.dump(value, file, indent=1)


class Shape:
    """What a checkpoint is drawn from; `stored` is its tensors' type."""

    def __init__(self, architecture, **sizes):
        self.architecture = architecture  # as in config.json
        self.layers = sizes.pop("layers")
        self.hidden = sizes.pop("hidden")
        self.intermediate = sizes.pop("intermediate")
        self.heads = sizes.pop("heads")
        self.kv_heads = sizes.pop("kv_heads")
        self.head_dim = sizes.pop("head_dim")
        self.vocab = sizes.pop("vocab", NUM_TOKENS + 30)
        self.stored = sizes.pop("stored", "float32")
        self.tied = sizes.pop("tied", False)
        self.bias = sizes.pop("bias", False)  # of attention and MLP; Llama
        self.llama3_rope = sizes.pop("llama3_rope", False)
        self.spelling = sizes.pop("spelling", 4)  # of transformers 4 or 5
        self.shards = sizes.pop("shards", 1)
        self.theta = sizes.pop("theta", 10000.0)
        assert not sizes, sizes

    def changed(self, **sizes):
        """The same with other sizes: the pruned half of a pair."""
        result = Shape.__new__(Shape)
        result.__dict__.update(self.__dict__)
        for key, value in sizes.items():
            assert hasattr(self, key), key
            setattr(result, key, value)
        return result


def _config(shape):
    config = {
        "architectures": [shape.architecture],
        "model_type": shape.architecture[:-len("ForCausalLM")].lower(),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5 if shape.spelling == 4 else 1e-6,
        "tie_word_embeddings": shape.tied,
        "vocab_size": shape.vocab,
        "bos_token_id": NUM_TOKENS - 3,
        "eos_token_id": NUM_TOKENS - 2,
    }
    # Stated only where it does not follow from the width.
    if shape.heads * shape.head_dim != shape.hidden:
        config["head_dim"] = shape.head_dim
    if shape.architecture == "LlamaForCausalLM":
        config["attention_bias"] = config["mlp_bias"] = shape.bias
    if shape.architecture == "MistralForCausalLM":
        config["sliding_window"] = None
    if shape.architecture.startswith("Qwen"):
        config.update(use_sliding_window=False, sliding_window=128,
                      max_window_layers=shape.layers)
    rope = None
    if shape.llama3_rope:
        # Tiny, so that prompts of a few dozen tokens reach every band.
        rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}
    if shape.spelling == 4:
        config["rope_theta"] = shape.theta
        config["rope_scaling"] = rope
        config["torch_dtype"] = shape.stored
    else:
        config["rope_parameters"] = dict(rope or {"rope_type": "default"},
                                         rope_theta=shape.theta)
        config["dtype"] = shape.stored
    return config


def _random_tensors(shape, generator):
    def normal(*size, std):
        return torch.randn(*size, generator=generator) * std

    def gain(size):
        return 1 + normal(size, std=0.2)

    tensors = {}

    def linear(name, rows, cols, bias, scale=1.0):
        tensors[name + ".weight"] = normal(rows, cols,
                                           std=scale / math.sqrt(cols))
        if bias:
            tensors[name + ".bias"] = normal(rows, std=0.3)

    qwen2 = shape.architecture == "Qwen2ForCausalLM"
    q_dim = shape.heads * shape.head_dim
    kv_dim = shape.kv_heads * shape.head_dim
    # A tied head with long rows would only repeat the last token.
    tensors["model.embed_tokens.weight"] = normal(
        shape.vocab, shape.hidden,
        std=1 / math.sqrt(shape.hidden) if shape.tied else 0.7)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        tensors[prefix + "input_layernorm.weight"] = gain(shape.hidden)
        linear(attention + "q_proj", q_dim, shape.hidden, shape.bias or qwen2)
        linear(attention + "k_proj", kv_dim, shape.hidden,
               shape.bias or qwen2)
        linear(attention + "v_proj", kv_dim, shape.hidden,
               shape.bias or qwen2)
        # What attention reads must weigh in the answer: an average over many
        # positions is small.
        linear(attention + "o_proj", shape.hidden, q_dim, shape.bias,
               scale=1.5)
        if shape.architecture == "Qwen3ForCausalLM":
            tensors[attention + "q_norm.weight"] = 1.3 * gain(shape.head_dim)
            tensors[attention + "k_norm.weight"] = gain(shape.head_dim)
        tensors[prefix + "post_attention_layernorm.weight"] = gain(
            shape.hidden)
        linear(mlp + "gate_proj", shape.intermediate, shape.hidden, shape.bias)
        linear(mlp + "up_proj", shape.intermediate, shape.hidden, shape.bias)
        linear(mlp + "down_proj", shape.hidden, shape.intermediate, shape.bias)
    tensors["model.norm.weight"] = gain(shape.hidden)
    if not shape.tied:
        linear("lm_head", shape.vocab, shape.hidden, False)
    return tensors


def write_checkpoint(directory, shape, seed):
    os.makedirs(directory)
    generator = torch.Generator().manual_seed(seed)
    tensors = _random_tensors(shape, generator)
    _write_json(directory, "config.json", _config(shape))
    _write_json(directory, "generation_config.json", {"do_sample": False})
    write_tokenizer(directory)
    if shape.shards == 1:
        write_safetensors(os.path.join(directory, "model.safetensors"),
                          tensors, shape.stored)
        return directory
    names, weight_map, total_bytes = sorted(tensors), {}, 0
    for shard in range(shape.shards):
        file = f"model-{shard + 1:05d}-of-{shape.shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shape.shards]}
        write_safetensors(os.path.join(directory, file), part, shape.stored)
        for name, tensor in part.items():
            weight_map[name] = file
            total_bytes += tensor.numel() * (
                4 if shape.stored == "float32" else 2)
    _write_json(directory, "model.safetensors.index.json", {
        "metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    return directory


def random_prompt(rng, num_tokens):
    """Ids that all have a token."""
    return [rng.randrange(NUM_TOKENS) for _ in range(num_tokens)]


def odd(rng, low, high):
    return rng.randrange(low | 1, high, 2)


def golden_shapes(rng):
    """One shape per architecture and peculiarity, by a readable name."""
    return {
        "llama_tied_llama3_rope": Shape(
            "LlamaForCausalLM", layers=3, hidden=odd(rng, 131, 200),
            intermediate=odd(rng, 301, 420), heads=4, kv_heads=2, head_dim=64,
            tied=True, llama3_rope=True, stored="bfloat16", shards=3,
            theta=500000.0),
        "llama_untied_biases": Shape(
            "LlamaForCausalLM", layers=2, hidden=240,
            intermediate=odd(rng, 301, 420), heads=3, kv_heads=3, head_dim=80,
            bias=True, spelling=5),
        "qwen2": Shape(
            "Qwen2ForCausalLM", layers=3, hidden=odd(rng, 131, 200),
            intermediate=odd(rng, 301, 420), heads=6, kv_heads=2, head_dim=96,
            tied=rng.random() < 0.5, stored="float16", theta=1000000.0),
        "qwen3": Shape(
            "Qwen3ForCausalLM", layers=2, hidden=odd(rng, 131, 200),
            intermediate=odd(rng, 301, 420), heads=4, kv_heads=1, head_dim=128,
            tied=rng.random() < 0.5, stored="bfloat16", spelling=5),
        "mistral": Shape(
            "MistralForCausalLM", layers=2, hidden=odd(rng, 131, 200),
            intermediate=odd(rng, 301, 420), heads=8, kv_heads=4, head_dim=64,
            stored="float16", shards=2, spelling=rng.choice([4, 5])),
        "llama_3b_pruned_width": Shape(
            "LlamaForCausalLM", layers=1, hidden=1689, intermediate=4505,
            heads=24, kv_heads=8, head_dim=128, tied=True, llama3_rope=True,
            stored="bfloat16", theta=500000.0),
    }


def seeded(seed):
    return random.Random(seed)


def write_kv_map(directory, kind, full, decode, rng):
    """The map's path, or None where the pair needs none: identity."""
    if kind == "identity":
        return None
    layers = sorted(rng.sample(range(full.num_layers), decode.num_layers))
    kv_map = {"kind": kind, "layers": layers}
    if kind == "projection":
        kv_map["file"] = "kv_map.safetensors"
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        size = full.num_kv_heads * full.head_dim
        tensors = {}
        for layer in range(decode.num_layers):
            for half in ["k", "v"]:
                # Near the identity, as a trained map is.
                tensors[f"layers.{layer}.{half}"] = torch.eye(
                    size) + torch.randn(size, size, generator=generator) * (
                        0.5 / math.sqrt(size))
        write_safetensors(os.path.join(directory, kv_map["file"]), tensors)
    _write_json(directory, "kv_map.json", kv_map)
    return os.path.join(directory, "kv_map.json")

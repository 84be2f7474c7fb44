"""Writes a checkpoint as a GGUF file, so that llama.cpp can read it.

From the format's description (ggml's docs/gguf.md): a header, key-value pairs,
tensor infos, then the tensors' data, little-endian and aligned. Everything is
stored as f32. Llama, Qwen2 and Qwen3 only.
"""

import json
import math
import os
import struct

import torch

import reference

_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT32 = 4, 6, 7, 8, 9, 5
_F32_TENSOR = 0
_ALIGNMENT = 32
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # kinds of token

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind, value):
    if kind == _STRING:
        return _string(value)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f",
                        _BOOL: "<?"}[kind], value)


def _pair(key, kind, value):
    return _string(key) + struct.pack("<I", kind) + _value(kind, value)


def _array(key, kind, values):
    return (_string(key) + struct.pack("<IIQ", _ARRAY, kind, len(values)) +
            b"".join(_value(kind, value) for value in values))


def _interleave(tensor, num_heads):
    """Rows of rotated pairs side by side, where llama.cpp expects them.

    A Hugging Face head pairs element i with element i + D / 2.
    """
    head_dim = tensor.shape[0] // num_heads
    split = tensor.reshape(num_heads, 2, head_dim // 2, -1)
    return split.transpose(1, 2).reshape(tensor.shape)


def _rope_divisors(config):
    """[D / 2] what each pair's frequency is divided by; Llama 3.1."""
    rope, divisors = config.llama3_rope, []
    for i in range(config.head_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta**(2 * i / config.head_dim)
        context = rope["original_max_position_embeddings"]
        longest = context / rope["low_freq_factor"]
        shortest = context / rope["high_freq_factor"]
        if wavelength < shortest:
            divisors.append(1.0)
        elif wavelength > longest:
            divisors.append(rope["factor"])
        else:
            smooth = ((context / wavelength - rope["low_freq_factor"]) /
                      (rope["high_freq_factor"] - rope["low_freq_factor"]))
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(divisors)


def _metadata(config, directory):
    name = _ARCHITECTURES[config.architecture]
    with open(os.path.join(directory, "tokenizer.json")) as file:
        tokenizer = json.load(file)
    tokens = [f"[UNUSED{i}]" for i in range(config.vocab_size)]
    kinds = [_UNUSED] * config.vocab_size
    for token, token_id in tokenizer["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = token, _NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    with open(os.path.join(directory, "config.json")) as file:
        raw = json.load(file)

    def number(key, value):
        return _pair(f"{name}.{key}", _UINT32, value)

    return [
        _pair("general.architecture", _STRING, name),
        _pair("general.name", _STRING, "golden"),
        number("context_length", raw["max_position_embeddings"]),
        number("embedding_length", config.hidden_size),
        number("block_count", config.num_layers),
        number("feed_forward_length", raw["intermediate_size"]),
        number("attention.head_count", config.num_heads),
        number("attention.head_count_kv", config.num_kv_heads),
        number("attention.key_length", config.head_dim),
        number("attention.value_length", config.head_dim),
        number("rope.dimension_count", config.head_dim),
        number("vocab_size", config.vocab_size),
        _pair(f"{name}.attention.layer_norm_rms_epsilon", _FLOAT32,
              config.norm_eps),
        _pair(f"{name}.rope.freq_base", _FLOAT32, config.rope_theta),
        _pair("tokenizer.ggml.model", _STRING, "gpt2"),
        _pair("tokenizer.ggml.pre", _STRING,
              "llama-bpe" if name == "llama" else "qwen2"),
        _array("tokenizer.ggml.tokens", _STRING, tokens),
        _array("tokenizer.ggml.token_type", _INT32, kinds),
        _array("tokenizer.ggml.merges", _STRING, merges),
        _pair("tokenizer.ggml.bos_token_id", _UINT32, raw["bos_token_id"]),
        _pair("tokenizer.ggml.eos_token_id", _UINT32, raw["eos_token_id"]),
        _pair("tokenizer.ggml.add_bos_token", _BOOL, False),
    ]


def _tensors(config, stored):
    name_of = {"model.embed_tokens.weight": "token_embd.weight",
               "model.norm.weight": "output_norm.weight",
               "lm_head.weight": "output.weight"}
    result = {}
    for name, tensor in stored.items():
        if name in name_of:
            result[name_of[name]] = tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        if config.architecture == "LlamaForCausalLM":
            if part == "self_attn.q_proj":
                tensor = _interleave(tensor, config.num_heads)
            elif part == "self_attn.k_proj":
                tensor = _interleave(tensor, config.num_kv_heads)
        result[f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"] = tensor
    if config.llama3_rope is not None:
        result["rope_freqs.weight"] = _rope_divisors(config)
    return result


def write_gguf(directory, path):
    """Writes the checkpoint of `directory` to the file `path`."""
    config = reference.Config(directory)
    tensors = _tensors(config, reference.read_checkpoint(directory))
    metadata = _metadata(config, directory)
    infos, pieces, offset = [], [], 0
    for name, tensor in tensors.items():
        data = tensor.to(torch.float32).contiguous().numpy().tobytes()
        shape = list(reversed(tensor.shape))
        infos.append(_string(name) + struct.pack("<I", len(shape)) +
                     struct.pack(f"<{len(shape)}Q", *shape) +
                     struct.pack("<IQ", _F32_TENSOR, offset))
        data += b"\0" * (-len(data) % _ALIGNMENT)
        pieces.append(data)
        offset += len(data)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(metadata))
    head = header + b"".join(metadata) + b"".join(infos)
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % _ALIGNMENT))
        for piece in pieces:
            file.write(piece)

"""Small random models of each architecture, and their folders."""

import json

import torch

from training import checkpoint
from training.model import Llama, init_weights
from training.model_config import ModelConfig, RopeScaling, hf_config
from training.safetensors_file import Spec, write_tensors

_SIZES = dict(
    vocab_size=50, hidden_size=20, intermediate_size=28, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    rope_theta=500.0, max_position_embeddings=256)

LLAMA = ModelConfig(**_SIZES)
LLAMA3 = ModelConfig(
    **_SIZES, tie_word_embeddings=False,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))
BIASED = ModelConfig(
    **_SIZES, qkv_bias=True, output_bias=True, mlp_bias=True)
QWEN2 = ModelConfig(
    **_SIZES, architecture="Qwen2ForCausalLM", qkv_bias=True)
QWEN3 = ModelConfig(
    **_SIZES, architecture="Qwen3ForCausalLM", qk_norm=True,
    tie_word_embeddings=False)
MISTRAL = ModelConfig(
    **_SIZES, architecture="MistralForCausalLM", tie_word_embeddings=False)
ALL = {"llama": LLAMA, "llama3": LLAMA3, "biased": BIASED, "qwen2": QWEN2,
       "qwen3": QWEN3, "mistral": MISTRAL}


def make(config, seed):
    """Louder than a fresh model, so that every part matters."""
    model = Llama(config)
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.uniform_(-0.5, 0.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "o_proj" in name or "down_proj" in name:
                parameter.mul_(10.0)
    return model.eval()


def rounded(model):
    """With values that bf16 holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


def save(folder, model, dtype=torch.bfloat16, max_shard_bytes=1 << 40,
         **changes):
    """A checkpoint with more in its config.json than is written here."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = {**hf_config(model.config, 48, 49), "eos_token_id": [49, 47],
              "transformers_version": "4.45.0", **changes}
    checkpoint.write_json(folder / "config.json", stated)
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "eos_token_id": [49, 47]}))
    state = model.state_dict()
    write_tensors(
        folder, {name: Spec(tuple(tensor.shape), dtype)
                 for name, tensor in state.items()},
        state.__getitem__, max_shard_bytes)


def rows_of_ids(seed, lengths, vocab_size=50):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist()
            for length in lengths]

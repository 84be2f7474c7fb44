"""The shape of a model, from and to a Hugging Face config.json.

What the server refuses is refused here too, and named: a pair is made to be
served.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

from training.errors import UserError

# What would change the arithmetic, or the meaning of tensors, in a way that
# the model does not know. Harmless when null, false, 0 or empty.
_UNSUPPORTED = (
    "quantization_config", "compression_config", "num_experts",
    "num_local_experts", "n_routed_experts", "moe_intermediate_size",
    "attn_logit_softcapping", "final_logit_softcapping",
    "query_pre_attn_scalar", "attention_multiplier", "embedding_multiplier",
    "residual_multiplier", "logits_scaling", "attention_chunk_size",
    "no_rope_layers", "use_qk_norm", "cross_attention_layers",
    "vision_config", "text_config",
)
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3", "MistralForCausalLM": "mistral",
}
DTYPES = ("float32", "float16", "bfloat16")
_MAX_LAYERS = 1024
_MAX_WIDTH = 1 << 20
_MAX_HEADS = 1024
_MAX_HEAD_DIM = 256
_MAX_VOCAB = 1 << 24
_MAX_POSITIONS = 1 << 28
# A section of type default changes nothing, so it must not look as if it did.
_SCALING_KEYS = (
    "factor", "low_freq_factor", "high_freq_factor", "short_factor",
    "long_factor", "beta_fast", "beta_slow", "attention_factor",
    "mrope_section")
# The window of a Mistral config that does not speak of one.
_MISTRAL_DEFAULT_WINDOW = 4096


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's: slow frequencies divided by `factor`, fast ones kept, those
    between blended."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


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
    architecture: str = "LlamaForCausalLM"
    rope_scaling: Optional[RopeScaling] = None
    qkv_bias: bool = False     # Qwen2; Llama, Qwen3 with attention_bias
    output_bias: bool = False  # Llama, Qwen3 with attention_bias
    mlp_bias: bool = False     # Llama with mlp_bias
    qk_norm: bool = False      # Qwen3
    dtype: str = "bfloat16"    # of the weights, and of the KV that is read


def hf_config(
    config: ModelConfig, bos_id: Optional[int], eos_id: Optional[int]
) -> Dict[str, Any]:
    """The config.json of a model that was made here."""
    own = ("architecture", "rope_scaling", "qkv_bias", "output_bias",
           "mlp_bias", "qk_norm", "dtype")
    sizes = {field.name: getattr(config, field.name)
             for field in dataclasses.fields(config) if field.name not in own}
    return {
        "architectures": [config.architecture],
        "model_type": _MODEL_TYPES[config.architecture],
        **sizes,
        "hidden_act": "silu",
        "attention_bias": config.output_bias,  # Qwen2 does not ask
        "mlp_bias": config.mlp_bias, "attention_dropout": 0.0,
        "rope_scaling": _hf_rope(config.rope_scaling), "pretraining_tp": 1,
        **({"sliding_window": None}
           if config.architecture == "MistralForCausalLM" else {}),
        "initializer_range": config.hidden_size ** -0.5, "use_cache": True,
        "bos_token_id": bos_id, "eos_token_id": eos_id,
        "torch_dtype": config.dtype,
    }


def _hf_rope(scaling: Optional[RopeScaling]) -> Optional[Dict[str, Any]]:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3", "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


def parse_config(raw: Any, origin: str) -> ModelConfig:
    """Every message begins with `origin`, the path of the file."""
    return _Reader(raw, origin).read()


class _Reader:
    """One config.json being read."""

    def __init__(self, raw: Any, origin: str) -> None:
        if not isinstance(raw, dict):
            raise UserError(f"{origin}: the top level must be a JSON object")
        self.raw: Dict[str, Any] = raw
        self.origin = origin

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.origin}: {what}")

    def read(self) -> ModelConfig:
        architecture = self._architecture()
        self._refuse_unsupported()
        sizes = {
            "vocab_size": self._size("vocab_size", _MAX_VOCAB),
            "hidden_size": self._size("hidden_size", _MAX_WIDTH),
            "intermediate_size": self._size("intermediate_size", _MAX_WIDTH),
            "num_hidden_layers": self._size("num_hidden_layers", _MAX_LAYERS),
            "max_position_embeddings": self._size(
                "max_position_embeddings", _MAX_POSITIONS),
        }
        eps = self._number(self.raw, "rms_norm_eps")
        if eps is None or not 0 < eps <= 1:
            raise self.fail("rms_norm_eps must be above 0 and at most 1")
        self._refuse_sliding_window(
            architecture, sizes["max_position_embeddings"],
            sizes["num_hidden_layers"])
        theta, scaling = self._rope()
        return ModelConfig(
            **sizes, **self._heads(architecture, sizes["hidden_size"]),
            rope_theta=theta, rms_norm_eps=eps, rope_scaling=scaling,
            tie_word_embeddings=self._flag("tie_word_embeddings"),
            architecture=architecture, **self._biases(architecture),
            qk_norm=architecture == "Qwen3ForCausalLM", dtype=self._dtype())

    def _architecture(self) -> str:
        names = self.raw.get("architectures")
        if (not isinstance(names, list) or len(names) != 1
                or not isinstance(names[0], str)):
            raise self.fail("architectures must be a list of one name")
        name = names[0]
        if name not in _MODEL_TYPES:
            raise self.fail(f"architecture {name[:200]!r} is not supported "
                            f"({', '.join(_MODEL_TYPES)})")
        kind = self.raw.get("model_type")
        if kind is not None and kind != _MODEL_TYPES[name]:
            raise self.fail(f"model_type {kind!r} does not fit the "
                            f"architecture {name}")
        return name

    def _refuse_unsupported(self) -> None:
        for key in _UNSUPPORTED:
            if self.raw.get(key):
                raise self.fail(f"{key} is not supported")
        for key in ("hidden_act", "hidden_activation"):
            if self.raw.get(key) not in (None, "silu"):
                raise self.fail(f"{key} {self.raw[key]!r} is not supported, "
                                "only silu is")

    def _dtype(self) -> str:
        stated = [self.raw[key] for key in ("dtype", "torch_dtype")
                  if self.raw.get(key) is not None]
        for name in stated:
            if name not in DTYPES:
                raise self.fail(f"dtype {name!r} is not supported "
                                f"({', '.join(DTYPES)})")
            if name != stated[0]:
                raise self.fail("dtype and torch_dtype differ")
        return stated[0] if stated else "float32"

    def _size(self, key: str, most: int) -> int:
        value = self.raw.get(key)
        if value is None:
            raise self.fail(f"{key} is absent")
        if type(value) is not int or not 1 <= value <= most:
            raise self.fail(f"{key} must be an integer between 1 and {most}, "
                            f"is {value!r}"[:400])
        return value

    def _number(self, section: Dict[str, Any], key: str) -> Optional[float]:
        value = section.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not abs(value) < 1e300:
            raise self.fail(f"{key} must be a finite number")
        return float(value)

    def _flag(self, key: str) -> bool:
        value = self.raw.get(key)
        if value not in (None, True, False) or type(value) in (int, float):
            raise self.fail(f"{key} must be true or false")
        return bool(value)

    def _heads(self, architecture: str, hidden_size: int) -> Dict[str, int]:
        heads = self._size("num_attention_heads", _MAX_HEADS)
        # Only Llama has always meant "as many" by saying nothing.
        stated = self.raw.get("num_key_value_heads") is not None
        kv_heads = heads
        if stated or architecture != "LlamaForCausalLM":
            kv_heads = self._size("num_key_value_heads", _MAX_HEADS)
        if heads % kv_heads != 0:
            raise self.fail(f"num_attention_heads {heads} is not a multiple "
                            f"of num_key_value_heads {kv_heads}")
        if self.raw.get("head_dim") is not None:
            head_dim = self._size("head_dim", _MAX_HEAD_DIM)
        elif architecture == "Qwen3ForCausalLM":
            raise self.fail("head_dim is absent, and Qwen3 does not derive it")
        elif hidden_size % heads != 0:
            raise self.fail(
                f"head_dim is absent, and hidden_size {hidden_size} is not a "
                f"multiple of num_attention_heads {heads}")
        else:
            head_dim = hidden_size // heads
        if head_dim % 8 != 0 or head_dim > _MAX_HEAD_DIM:
            raise self.fail(f"head_dim {head_dim} is not a multiple of 8 of at "
                            f"most {_MAX_HEAD_DIM}")
        return {"num_attention_heads": heads, "num_key_value_heads": kv_heads,
                "head_dim": head_dim}

    def _biases(self, architecture: str) -> Dict[str, bool]:
        attention = self._flag("attention_bias")
        mlp = self._flag("mlp_bias")
        if mlp and architecture != "LlamaForCausalLM":
            raise self.fail("mlp_bias: only Llama has one")
        if architecture == "Qwen2ForCausalLM":  # whatever attention_bias says
            return {"qkv_bias": True, "output_bias": False, "mlp_bias": False}
        if attention and architecture == "MistralForCausalLM":
            raise self.fail("attention_bias: Mistral has none")
        return {"qkv_bias": attention, "output_bias": attention,
                "mlp_bias": mlp}

    def _refuse_sliding_window(
        self, architecture: str, max_positions: int, num_layers: int
    ) -> None:
        types = self.raw.get("layer_types")
        if types is not None and types != ["full_attention"] * num_layers:
            raise self.fail("layer_types must be num_hidden_layers times "
                            "full_attention")
        is_qwen = architecture.startswith("Qwen")
        # A switch of Qwen's alone: Mistral's window is there or is null.
        if not self._flag("use_sliding_window") and is_qwen:
            return
        window = self.raw.get("sliding_window")
        stated = "sliding_window" in self.raw
        if is_qwen and not stated:
            raise self.fail("use_sliding_window: sliding windows are not "
                            "supported")
        if window is not None and type(window) is not int:
            raise self.fail("sliding_window must be an integer")
        if (not stated and architecture == "MistralForCausalLM"
                and max_positions > _MISTRAL_DEFAULT_WINDOW):
            window = _MISTRAL_DEFAULT_WINDOW
        # One that is as wide as the context hides nothing.
        if window is not None and window < max_positions:
            raise self.fail(f"sliding_window {window} is not supported: it is "
                            "less than max_position_embeddings "
                            f"{max_positions}")

    def _rope(self) -> Tuple[float, Optional[RopeScaling]]:
        """rope_theta and rope_scaling, or rope_parameters of newer files."""
        sections = [self.raw]
        scalings: List[Optional[RopeScaling]] = []
        for key in ("rope_scaling", "rope_parameters"):
            section = self.raw.get(key)
            if section is None:
                continue
            if not isinstance(section, dict):
                raise self.fail(f"{key} must be an object")
            sections.append(section)
            scalings.append(self._scaling(key, section))
        for section in sections:
            for key in ("partial_rotary_factor", "rotary_pct"):
                if self._number(section, key) not in (None, 1.0):
                    raise self.fail(f"{key}: partial rotary embeddings are "
                                    "not supported")
        stated = {self._number(section, "rope_theta") for section in sections}
        thetas = [theta for theta in stated if theta is not None]
        if len(thetas) != 1:
            raise self.fail("rope_theta is absent" if not thetas
                            else f"rope_theta is stated twice: {thetas}")
        if not 1 < thetas[0] <= 1e15:
            raise self.fail("rope_theta must be above 1 and at most 1e15")
        if len(set(scalings)) > 1:
            raise self.fail("rope_scaling and rope_parameters differ")
        return thetas[0], scalings[0] if scalings else None

    def _scaling(
        self, name: str, section: Dict[str, Any]
    ) -> Optional[RopeScaling]:
        if any(isinstance(value, dict) for value in section.values()):
            raise self.fail(f"{name}: parameters per kind of layer are not "
                            "supported")
        kinds = [section[key] for key in ("rope_type", "type")
                 if section.get(key) is not None] or ["default"]
        kind = kinds[0]
        if kinds[-1] != kind:
            raise self.fail(f"{name}: rope_type and type differ")
        if kind == "default":
            for key in _SCALING_KEYS:
                if section.get(key) is not None:
                    raise self.fail(f"{name}: has {key}, which the rope_type "
                                    "default has not")
            return None
        if kind != "llama3":
            raise self.fail(f"{name}: rope_type {kind!r} is not supported "
                            "(default, llama3)")

        def number(key: str, least: float) -> float:
            value = self._number(section, key)
            if value is None or not least <= value <= 1e6:
                raise self.fail(f"{name}: {key} must be a number between "
                                f"{least:g} and 1e6")
            return value

        factor = number("factor", 1.0)
        low, high = (number("low_freq_factor", 0.0),
                     number("high_freq_factor", 0.0))
        if high <= low:
            raise self.fail(f"{name}: high_freq_factor must exceed "
                            "low_freq_factor")
        original = section.get("original_max_position_embeddings")
        if type(original) is not int or not 1 <= original < 1 << 31:
            raise self.fail(f"{name}: original_max_position_embeddings must "
                            "be an integer between 1 and 2^31 - 1")
        return RopeScaling(factor, low, high, original)

"""Small random-weight models of mlx-lm's own classes, with their families' head dimensions."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.models import cache as caches

VOCAB = 96
WINDOW = 48  # keys; shorter than the contexts of the tests, so that it hides some


class Family(NamedTuple):
    """One model of mlx-lm, made small."""

    module: str
    config: dict[str, Any]
    attention_layers: int  # calls of attention in one forward pass
    quantized_layers: int = 0  # of these, with a KVCache that can be quantized
    # A quantized cache "runs" in mlx-lm, or is "refused"; or mlx-lm fails on it and ours does not.
    kv_bits: str = "runs"
    experts: bool = False  # which MLX multiplies in float32 only on the CPU


COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROPE = {"type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
LINEAR = {  # the layers of qwen3_next and qwen3_5 that are not attention
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
HYBRID = ["sliding_attention", "full_attention"]

FAMILIES = {
    "llama": Family(
        "llama",
        {**COMMON, "num_hidden_layers": 2, "head_dim": 64},
        attention_layers=2,
        quantized_layers=2,
    ),
    "gemma2": Family(
        "gemma2",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 5.0,
        },
        attention_layers=2,
        quantized_layers=2,
        kv_bits="mended",
    ),
    "gemma3_text": Family(
        "gemma3_text",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "head_dim": 256,
            "num_key_value_heads": 1,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 2,
        },
        attention_layers=2,
        quantized_layers=1,
    ),
    "gemma4_text": Family(
        "gemma4_text",
        {
            **COMMON,
            "num_hidden_layers": 3,  # the last reads the keys and values of the first
            "num_kv_shared_layers": 1,
            "layer_types": [*HYBRID, "sliding_attention"],
            "head_dim": 256,
            "global_head_dim": 512,
            "num_key_value_heads": 1,
            "sliding_window": WINDOW,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 16,
        },
        attention_layers=3,
        quantized_layers=1,
    ),
    "qwen3_next": Family(
        "qwen3_next",
        {
            **COMMON,
            **LINEAR,
            "num_hidden_layers": 2,
            "head_dim": 256,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "shared_expert_intermediate_size": 32,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [0, 1],
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "max_position_embeddings": 4096,
        },
        attention_layers=1,
        quantized_layers=1,
    ),
    "qwen3_5": Family(
        "qwen3_5",
        {**COMMON, **LINEAR, "num_hidden_layers": 2, "head_dim": 256, "rope_parameters": ROPE},
        attention_layers=1,
        quantized_layers=1,
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "kv_lora_rank": 512,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "first_k_dense_replace": 2,
        },
        attention_layers=2,
        kv_bits="refused",
    ),
    "gpt_oss": Family(
        "gpt_oss",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "head_dim": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": HYBRID,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 4096,
            },
        },
        attention_layers=2,
        kv_bits="refused",
        experts=True,
    ),
    "mimo_v2_flash": Family(
        "mimo_v2_flash",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "hybrid_layer_pattern": [1, 0],
            "moe_layer_freq": [0, 0],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
            "sliding_window_size": WINDOW,
            "moe_intermediate_size": 32,
            "n_shared_experts": None,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.0,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "max_position_embeddings": 4096,
            "layernorm_epsilon": 1e-6,
            "rope_theta": 10000.0,
            "swa_rope_theta": 10000.0,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 1,
            "head_dim": 192,
            "v_head_dim": 128,
            "swa_head_dim": 192,
            "swa_v_head_dim": 128,
            "partial_rotary_factor": 0.5,
        },
        attention_layers=2,
        quantized_layers=1,
        kv_bits="mended",
    ),
    "plamo2": Family(
        "plamo2",
        {
            **COMMON,
            "num_hidden_layers": 2,
            "hidden_size_per_head": 128,
            "attention_window_size": 4096,
            "mamba_d_state": 16,
            "mamba_num_heads": 4,
        },
        attention_layers=1,
        kv_bits="refused",
    ),
    "gear": Family(
        "gear",
        {
            **COMMON,
            "num_hidden_layers": 3,
            "head_dim": 64,
            "layer_types": ["conv_mixer", *HYBRID],
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
        },
        attention_layers=2,
        quantized_layers=1,
        kv_bits="mended",
    ),
}


def make(family: str, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Any:
    """The model with random weights."""
    module = importlib.import_module(f"mlx_lm.models.{FAMILIES[family].module}")
    config = {"model_type": family, **FAMILIES[family].config}
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map_with_path(partial(_random_weight, family), model.parameters()))
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def _random_weight(family: str, path: str, weight: mx.array) -> mx.array:
    # Queries and keys of MLX's own initialisation give scores near 0: attention would hardly
    # depend on the keys. These spread them over about +-5, and norms and sinks are not all equal.
    # gemma4 has no scale: its norm weights have to hold it.
    scale = 0.25 if family == "gemma4_text" and "self_attn.q_norm" in path else 1.0
    if path.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")):
        return 3 * weight
    if weight.ndim == 1 and ("norm" in path or "sink" in path):
        return scale * (weight + 0.3 * mx.random.normal(weight.shape))
    return weight


def make_cache(model: Any, left_padding: list[int] | None = None) -> list[Any]:
    """mlx-lm's cache for the model, for one sequence or for a batch of left-padded ones."""
    made = caches.make_prompt_cache(model)
    if left_padding is None:
        return made
    batched = []
    for cache in made:
        if isinstance(cache, caches.KVCache):
            batched.append(caches.BatchKVCache(left_padding))
        elif isinstance(cache, caches.RotatingKVCache):
            batched.append(caches.BatchRotatingKVCache(cache.max_size, left_padding))
        else:
            batched.append(caches.ArraysCache(len(cache.cache), left_padding))
    return batched


def quantize(cache: list[Any], bits: int) -> None:
    """Quantizes in place what mlx-lm can: its KVCaches, as --kv-bits does."""
    for i, layer in enumerate(cache):
        if isinstance(layer, caches.KVCache):
            cache[i] = layer.to_quantized(group_size=64, bits=bits)

"""Models of mlx-lm with random weights, a few layers and the attention of real ones.

mlx-lm evaluates only the cache while it prefills: there the attention of the last layer is not run.
"""

import importlib
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map_with_path


class Model(NamedTuple):
    """A family of mlx-lm, and its configuration less the sizes of what is around the attention."""

    family: str
    attention: str  # of the layers that matter here, in words
    config: dict[str, Any]


SIZES = {"vocab_size": 8192, "hidden_size": 2048, "intermediate_size": 6144}
SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64}
MLA = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
}
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
MODELS = {
    "D256": Model(
        "gemma3_text",
        "16 heads on 2, head_dim 256, in 6 layers",
        {
            "head_dim": 256,
            "num_hidden_layers": 6,
            "sliding_window": 48,
            "sliding_window_pattern": 1,  # no layer has one
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
    ),
    "D512": Model(
        "gemma4_text",
        "16 heads on 2, head_dim 512, in 3 layers; 16 on 8, 256, window 1024, in 3",
        {
            "head_dim": 256,
            "global_head_dim": 512,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["full_attention", "sliding_attention"] * 3,
            "sliding_window": 1024,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
        },
    ),
    "D192-128": Model(
        "deepseek_v2",
        "16 heads, head_dim (192, 128), in 4 layers",
        {**MLA, "rope_scaling": YARN},
    ),
    # mlx-lm makes the scores of the rope part an additive mask: [16, 2048, Lk] in a prefill step.
    "MLA": Model(
        "deepseek_v3",
        "16 heads, prefill 128 and decode 512 on 1, additive mask of the rope part, in 4 layers",
        MLA,
    ),
}


def config_of(name: str, small: bool = False) -> dict[str, Any]:
    """The configuration; `small` keeps the attention and has almost nothing around it."""
    return {"rms_norm_eps": 1e-6} | (SMALL if small else SIZES) | MODELS[name].config


def make(name: str, small: bool = False, seed: int = 0, dtype: str = "bfloat16") -> Any:
    """The model; the same weights, all of bfloat16, wherever it is made on one kind of device."""
    config = {"model_type": MODELS[name].family, **config_of(name, small)}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    spread = partial(_spread, config["model_type"])
    model.update(tree_map_with_path(spread, model.parameters()))
    model.set_dtype(mx.bfloat16)
    model.set_dtype(getattr(mx, dtype))
    model.eval()
    mx.eval(model.parameters())
    return model


def _spread(family: str, path: str, weight: mx.array) -> mx.array:
    # Scores of MLX's own initialisation are near 0: attention would hardly depend on the keys.
    # gemma4 has no scale, so that they would be about 22 there: to rounding, a choice of one key.
    if path.endswith(("q_proj.weight", "k_proj.weight", "kv_b_proj.weight", "embed_q.weight")):
        return 3 * weight
    if family == "gemma4_text" and "self_attn.q_norm" in path:
        return weight / 8
    # gemma3 multiplies by 1 + weight and would have scores of about 4: roundings grow from layer to
    # layer, and the logits of any two orders of summation have little to do with each other.
    if family == "gemma3_text" and "self_attn.q_norm" in path:
        return mx.full(weight.shape, -0.5, weight.dtype)
    return weight

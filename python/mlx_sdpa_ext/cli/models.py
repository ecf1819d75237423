"""The model that `demo` prefills: a small one of a real family, or one read from a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

# The attention of Gemma 3 1B (4 query heads on 1 key/value head, head_dim 256), in every layer over
# all keys (pattern 1: no sliding windows), and almost nothing around it. Two layers, because
# mlx-lm evaluates only the cache while it prefills: the last layer's attention is not needed for
# that, so a single layer would run none at all.
SMALL_GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window_pattern": 1,
    "vocab_size": 512,
    "max_position_embeddings": 1 << 20,
}
DTYPES = ("float32", "float16", "bfloat16")


class ModelError(Exception):
    """The model cannot be made or read; the message says why."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and what the report says of it."""

    # mlx.nn.Module, called as module(tokens [B, L], cache=...) -> logits [B, L, V]
    module: Any = field(repr=False)
    name: str
    family: str
    vocab_size: int
    layers: int
    dtype: str

    @property
    def parameters(self) -> int:
        return sum(p.size for _, p in tree_flatten(self.module.parameters()))


def small_model(dtype: str = "bfloat16", seed: int = 0) -> LoadedModel:
    """A `gemma3_text` model of mlx-lm with random weights: 4 query heads on 1 KV head of 256."""
    from mlx_lm.models import gemma3_text

    mx.random.seed(seed)
    module = gemma3_text.Model(gemma3_text.ModelArgs.from_dict(SMALL_GEMMA3))
    return _finish(module, SMALL_GEMMA3, "random weights", dtype)


def read_model(path: Path, dtype: str | None = None) -> LoadedModel:
    """Reads the mlx-lm model in the folder `path`; `dtype` None keeps the one it is stored in.

    Raises ModelError when the folder does not hold a model that mlx-lm can load.
    """
    from mlx_lm.utils import load_model

    if not path.is_dir():
        raise ModelError(f"--model {path}: no such folder (give a local folder with config.json)")
    if not (path / "config.json").is_file():
        raise ModelError(f"--model {path}: there is no config.json in it")
    try:
        config = json.loads((path / "config.json").read_text())
        module, *_ = load_model(path)
    # Whatever mlx-lm raises on a damaged or unknown model is its answer to the user's folder.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"--model {path}: mlx-lm cannot load it: {reason[0]}") from error
    return _finish(module, config, path.resolve().name, dtype)


def _finish(module: Any, config: dict, name: str, dtype: str | None) -> LoadedModel:
    text = config.get("text_config") or config
    vocab_size = text.get("vocab_size") or config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ModelError(f"{name}: its config.json has no vocab_size, which the prompt needs")
    if dtype is not None:
        module.set_dtype(getattr(mx, dtype))
    module.eval()
    mx.eval(module.parameters())
    floats = [p.dtype for _, p in tree_flatten(module.parameters()) if p.dtype in _FLOATS]
    stored = max(set(floats), key=floats.count) if floats else None
    return LoadedModel(
        module=module,
        name=name,
        family=config.get("model_type", "unknown"),
        vocab_size=vocab_size,
        layers=len(module.layers),
        dtype=str(stored).rpartition(".")[2],
    )


_FLOATS = tuple(getattr(mx, name) for name in DTYPES)

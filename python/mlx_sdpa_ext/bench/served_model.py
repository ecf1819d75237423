"""Small models with random weights as folders that mlx_lm.server loads, with a tokenizer made here.

Each folder has a module of its own for its model, mlx-lm's with two things more: it has MLX keep no
freed buffers, and at the end of the process it writes down how many attention calls its forward
passes must have made.
"""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

VOCAB = 256
FIRST_WORD = 32  # of the prompts of clients; server.py has those from 2 on for itself
WINDOW = 64  # keys of the sliding windows
EXPECTED = "SERVED_ATTENTION_CALLS"  # the variable that names the file of that count
COUNTING = f"""
import atexit
import os
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.{{module}} import Model, ModelArgs

mx.set_cache_limit(0)
calls = 0
forward = Model.__call__


def counted(self, *args, **kwargs):
    global calls
    calls += len(self.layers)
    return forward(self, *args, **kwargs)


Model.__call__ = counted  # of the draft model too, which is of the same class
atexit.register(lambda: Path(os.environ["{EXPECTED}"]).write_text(str(calls)))
"""
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


class Served(NamedTuple):
    """A model, and how its server is started."""

    module: str
    config: dict[str, Any]
    arguments: tuple[str, ...] = ()
    draft: bool = False
    # Whether prompts continue answers, or share their first words. Of a draft model's caches mlx-lm
    # 0.32.2 counts a token more or less than they hold; what then comes out of its prompt cache
    # depends on the order of the requests, patched or not.
    continued: bool = True


SERVED = {
    # Batched: left-padded caches, of full and of rotating layers.
    "window": Served(
        "gemma3_text",
        {
            **COMMON,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 3,
        },
    ),
    # One after the other, 9 to 48 rows at once.
    "speculative": Served(
        "llama",
        {**COMMON, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 128},
        draft=True,
        continued=False,
    ),
    # One after the other, keys and values in 8 bits.
    "quantized": Served(
        "llama",
        {**COMMON, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 128},
        ("--kv-bits", "8", "--quantized-kv-start", "16"),
    ),
}


def write(name: str, folder: Path) -> tuple[Path, Path | None]:
    """The folders of a model and, if it has one, of its draft model, under `folder`."""
    served = SERVED[name]
    main = _write(served, folder / "model", _spread)
    if not served.draft:
        return main, None
    return main, _write(served, folder / "draft", partial(_spread, noise=0.02))


def _write(served: Served, folder: Path, weights: Callable[[str, mx.array], mx.array]) -> Path:
    module = importlib.import_module(f"mlx_lm.models.{served.module}")
    config = {"model_type": served.module, **served.config}
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    folder.mkdir(parents=True)
    parameters = tree_flatten(tree_map_with_path(weights, model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(parameters))
    if folder.name == "model":  # the server loads a draft model without a module of its own
        (folder / "counting.py").write_text(COUNTING.format(module=served.module))
        config["model_file"] = "counting.py"
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer().save_pretrained(folder)
    return folder


def _spread(path: str, weight: mx.array, noise: float = 0.0) -> mx.array:
    """Scores that attention depends on, first choices that are clear, answers that do not end."""
    if path.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")):
        weight = 3 * weight
    if path.endswith("lm_head.weight"):
        weight[COMMON["eos_token_id"]] = 0
    if not noise or weight.ndim < 2:
        return weight
    # Seeded by the name: the draft model is the same wherever it is made.
    key = mx.random.key(sum(path.encode()))
    return weight * (1 + noise * mx.random.normal(weight.shape, key=key))


def _tokenizer() -> Any:
    """Words `w2` ... `w255`, separated by spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )

"""mlx-lm's LoRA trainer with the patch on: the losses of stock MLX, through the gradient kernel."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_sdpa_ext
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, default_loss, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from tiny_models import FAMILIES, VOCAB, make

STEPS = 6
TRAINED = ("llama", "gemma2", "gemma3_text", "gear")  # plain; softcap; window; both


class Losses(TrainingCallback):
    def __init__(self):
        self.found = []

    def on_train_loss_report(self, train_info):
        self.found.append(train_info["train_loss"])


def adapted(family: str):
    model = make(family)
    model.freeze()
    mx.random.seed(1)
    linear_to_lora_layers(model, len(model.layers), {"rank": 4, "scale": 4.0, "dropout": 0.0})
    return model


def texts(rng, lengths=(150, 150, 70, 33)):
    """Of the tokens, each is the one before it plus a step of its text: something to learn."""
    return [
        (((start + step * np.arange(n)) % VOCAB).tolist(), 0)
        for n, start, step in zip(lengths, rng.integers(VOCAB, size=4), rng.integers(1, 5, size=4))
    ]


def trained(family: str, data, folder, checkpoint: bool):
    """Losses step by step, and the adapter's weights."""
    model, losses = adapted(family), Losses()
    args = TrainingArgs(
        batch_size=2,
        iters=STEPS,
        steps_per_report=1,
        adapter_file=str(folder / "adapters.safetensors"),
        grad_checkpoint=checkpoint,
    )
    np.random.seed(0)  # noqa: NPY002, mlx-lm draws the order of its batches from it
    train(model, optim.SGD(learning_rate=0.05), data, args=args, training_callback=losses)
    return np.array(losses.found), dict(tree_flatten(model.trainable_parameters()))


@pytest.mark.parametrize("checkpoint", (False, True), ids=("", "checkpoint"))
@pytest.mark.parametrize("family", TRAINED)
def test_lora_learns_as_with_stock(family, checkpoint, rng, tmp_path):
    data = texts(rng)
    stock, stock_weights = trained(family, data, tmp_path, checkpoint)
    with mlx_sdpa_ext.patched():
        ours, weights = trained(family, data, tmp_path, checkpoint)
        assert mlx_sdpa_ext.stats().calls >= FAMILIES[family].attention_layers
    assert len(ours) == STEPS
    assert np.ptp(stock) > 0.05, "the losses change from step to step"
    np.testing.assert_allclose(ours, stock, rtol=1e-5)
    for name, weight in weights.items():
        if name.endswith("q_proj.lora_b"):  # zero at first; moved by the gradient of scores alone
            assert mx.abs(weight).max() > 1e-3, name
        np.testing.assert_allclose(weight, stock_weights[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("family", TRAINED)
def test_every_layer_has_its_gradient_from_the_kernel(family, rng, tmp_path):
    model = adapted(family)
    batch = mx.array(rng.integers(VOCAB, size=(2, 65)))
    loss = nn.value_and_grad(model, default_loss)
    with mlx_sdpa_ext.patched():
        _, grads = loss(model, batch, mx.array([[0, 64], [0, 40]]))
    mx.export_to_dot(str(tmp_path / "graph"), *(g for _, g in tree_flatten(grads)))
    graph = (tmp_path / "graph").read_text()
    assert graph.count('"SdpaBackward"') == FAMILIES[family].attention_layers

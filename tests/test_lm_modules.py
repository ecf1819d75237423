"""Every model of mlx-lm with and without the patch, as docs/models.md has it."""

from __future__ import annotations

import lm_modules
import mlx.core as mx
import model_runs
import model_table
import pytest
from mlx_sdpa_ext import attention, limits
from model_runs import Run


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """As the table, also where the other tests run on a GPU."""
    monkeypatch.setenv(limits.DEVICE, "cpu")
    limits.refresh()
    yield
    monkeypatch.undo()
    limits.refresh()


def test_the_table_is_up_to_date(capsys):
    assert model_table.main(["--check"]) == 0, capsys.readouterr().out


def test_every_name_is_that_of_a_module():
    names = set(lm_modules.modules())
    assert names.issuperset(lm_modules.CHANGED)
    assert names.issuperset(lm_modules.NOT_MADE)
    assert names.issuperset(model_table.LEFT_ALONE)


def test_a_wrong_result_is_not_called_equal(monkeypatch):
    attend = attention.scaled_dot_product_attention

    def wrong(*args, scale, **options):
        return attend(*args, scale=1.01 * scale, **options)

    assert model_runs.run("llama").equal
    monkeypatch.setattr(attention, "scaled_dot_product_attention", wrong)
    found = model_runs.run("llama")
    assert found.difference > model_runs.ATOL
    with pytest.raises(ValueError, match="llama: Run"):
        model_table.result("llama", found)


def test_attention_that_is_not_reached_is_seen():
    found = model_runs.run("phi3small")
    assert (found.own, found.prefill_calls) == (1, 1)
    with pytest.raises(ValueError, match="llama: Run"):
        model_table.result("llama", found)


def test_calls_left_to_stock_are_not_called_equal():
    found = Run(prefill_calls=1, moved=1.0)
    assert found.equal
    assert not found._replace(fallbacks=1).equal
    assert not found._replace(moved=0.0).equal
    assert not found._replace(same_tokens=False).equal


def test_the_patch_is_off_afterwards():
    before = attention.scaled_dot_product_attention
    model_runs.run("qwen3")
    assert attention.scaled_dot_product_attention is before
    assert mx.fast.scaled_dot_product_attention is attention.stock_attention

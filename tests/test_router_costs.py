"""What a Route says of work and memory, against counting one by one."""

from __future__ import annotations

import itertools

import pytest
from mlx_sdpa_ext import router
from mlx_sdpa_ext.words import Problem


def problem(Lq, Lk, window=None, mask="causal", **more):
    sizes = {"B": 2, "Hq": 6, "Hkv": 3, "D": 40, "Dv": 24, "dtype": "float16", **more}
    return Problem(Lq=Lq, Lk=Lk, mask=mask, window=window, **sizes)


def counted(Lq, Lk, window):
    """Visible (query, key) pairs: the last query sees the last key."""
    pairs = 0
    for query, key in itertools.product(range(Lq), range(Lk)):
        position = query + Lk - Lq
        pairs += key <= position and (window is None or key > position - window)
    return pairs


@pytest.mark.parametrize("window", (None, 1, 2, 5, 13, 100))
def test_seen_pairs(window):
    for Lq, Lk in itertools.product((0, 1, 2, 7, 13, 20), (0, 1, 6, 13, 21)):
        assert router.seen(problem(Lq, Lk, window)) == counted(Lq, Lk, window), (Lq, Lk)


def test_flops():
    assert router.flops(problem(7, 9, mask="bool")) == 2 * 2 * 6 * 7 * 9 * (40 + 24)
    assert router.flops(problem(7, 9)) == 2 * 2 * 6 * counted(7, 9, None) * (40 + 24)


# bytes a score: arrays of scores times their item size
@pytest.mark.parametrize(
    ("dtype", "more", "expected"),
    [
        ("float16", {}, 2 * 2),
        ("float32", {}, 2 * 4),
        ("float64", {}, 2 * 8),
        ("float16", {"mask": "bool"}, 2 * 2),
        ("float16", {"mask": "additive"}, 3 * 2),
        ("float16", {"softcap": 2.0}, 4 * 4),
        ("float32", {"softcap": 2.0}, 2 * 4),
        ("float32", {"want_lse": True}, 4 * 4),
        ("float32", {"sinks": True}, 4 * 4),
        ("float64", {"sinks": True}, 4 * 8),
        ("float32", {"mask": "additive", "sinks": True}, 5 * 4),
    ],
)
def test_unfused_bytes(dtype, more, expected):
    asked = problem(5, 9, dtype=dtype, **more)
    assert router.unfused_bytes(asked) == 2 * 6 * 5 * 9 * expected
    assert router.unfused_bytes(asked, rows=2) == 2 * 6 * 2 * 9 * expected


@pytest.mark.parametrize("more", ({"want_lse": True}, {"sinks": True}), ids=str)
def test_keys_of_16_bits_are_widened_once_for_all_rows(more):
    keys = 2 * 3 * 9 * 40 * 4
    for rows in (1, 5):
        scores = 2 * 6 * rows * 9 * 16
        assert router.unfused_bytes(problem(5, 9, **more), rows) == scores + keys
    # and what they take is not there for the rows
    long = problem(4000, 9000, mask="none", **more)
    limit = 64 << 20
    rows = router.block_rows(long, limit)
    assert router.unfused_bytes(long, rows) <= limit < router.unfused_bytes(long, 2 * rows)


def test_a_window_bounds_the_keys_of_a_block():
    asked = problem(64, 1000, window=10)
    assert router.unfused_bytes(asked, rows=16) == 2 * 6 * 16 * (16 + 9) * 4
    assert router.unfused_bytes(problem(64, 20, window=10), rows=16) == 2 * 6 * 16 * 20 * 4


@pytest.mark.parametrize("mask", ("none", "causal", "additive"))
@pytest.mark.parametrize("Lq", (1, 2, 9, 1000, 1024, 1025, 2048, 5000))
def test_block_rows(Lq, mask):
    """Blocks fill the limit up to rounding, or are one row; causal ones are small, to skip keys."""
    asked = problem(Lq, 4096, mask=mask)
    row = router.unfused_bytes(asked, rows=1)
    for rows_that_fit in (0, 1, 2, 100, 1023, 1024, 10**6):
        rows = router.block_rows(asked, rows_that_fit * row)
        most = min(Lq, router.SKIPPING_ROWS if mask == "causal" else Lq, max(1, rows_that_fit))
        assert 1 <= rows <= most
        assert -(-Lq // rows) == -(-Lq // most)  # no more blocks than blocks of `most` rows


def test_block_rows_of_nothing():
    assert router.block_rows(problem(0, 5), 100) == 1
    assert router.block_rows(problem(5, 0), 100) == 5
    assert router.block_rows(problem(5, 5, B=0), 100) == 5

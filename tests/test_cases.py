"""Every pair of features meets in some case: dtype, dims, heads, mask, layouts, path, ISA..."""

from __future__ import annotations

import pytest
from cases import DTYPES, verify
from features import FEATURES, case
from mlx_sdpa_ext import _ext
from pairwise import pairwise

DIMS = [
    *((d, None) for d in (1, 8, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256, 512, 576, 1024)),
    *((192, 128), (96, 64), (576, 512), (256, 128)),
]
HEADS = [(1, 8, 2), (2, 4, 4), (1, 8, 1), (3, 4, 2)]
LENGTHS = [(1, 1), (1, 131), (3, 40), (65, 127), (127, 65), (64, 64), (33, 200), (7, 513), (70, 1)]
MASKS = [
    {"mask": "none"},
    *({"mask": "causal", "window": w} for w in (None, 1, 17, 4096)),
    *(
        {"mask": kind, "mask_shape": shape}
        for kind, shapes in (
            ("bool", ("", "K", "QK", "11QK", "B11K", "1H1K", "BHQK")),
            ("additive", ("1", "K", "Q1", "HQK", "11QK", "B1QK", "BH1K", "BHQK")),
        )
        for shape in shapes
    ),
]
PATHS = [
    {"path": "fused"},
    *({"path": "chunked", "chunk_size": n} for n in (5, 32, 1000)),
    *({"path": "unfused", "block_rows": n} for n in (0, 16)),
]

FACTORS = {
    "dims": DIMS,
    "heads": HEADS,
    "lengths": LENGTHS,
    "dtype": DTYPES,
    "masking": MASKS,
    **FEATURES,
    "pathway": PATHS,
    "isa": tuple(_ext.cpu()["isas"]),
}


@pytest.mark.parametrize("case", [case(**row) for row in pairwise(FACTORS)], ids=str)
def test_every_pair_of_features(case, rng):
    verify(case, rng)

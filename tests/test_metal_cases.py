"""Every pair of features on the software Metal device, from the primitive to the kernels."""

from __future__ import annotations

import pytest
from cases import DTYPES, verify
from features import FEATURES, MASKS, case
from pairwise import pairwise

pytestmark = pytest.mark.metal

DIMS = [
    *((d, None) for d in (1, 8, 40, 64, 72, 80, 96, 100, 112, 128, 160, 192, 256, 512)),
    *((96, 64), (192, 128), (192, 256), (256, 128), (300, 200), (576, 512)),
]
HEADS = [(1, 8, 2), (2, 4, 4), (1, 6, 1), (3, 4, 2)]
LENGTHS = [(1, 1), (1, 131), (3, 40), (65, 127), (40, 65), (9, 64), (33, 140), (7, 333), (70, 1)]
MASKS = [*MASKS, {"mask": "additive", "mask_shape": "QK", "mask_dtype": "float16"}]
PATHS = [{"path": "fused"}, *({"path": "chunked", "chunk_size": n} for n in (5, 32, 1000))]

FACTORS = {
    "dims": DIMS,
    "heads": HEADS,
    "lengths": LENGTHS,
    "dtype": DTYPES,
    "masking": MASKS,
    **FEATURES,
    "pathway": PATHS,
}


def allowed(row: dict) -> bool:
    """A mask must promote to the dtype, and a dispatch for each five of 333 keys takes long."""
    if row["masking"].get("mask_dtype", row["dtype"]) not in (row["dtype"], "float16"):
        return False
    if row["masking"].get("mask_dtype") and row["dtype"] == "bfloat16":
        return False
    return row["pathway"].get("chunk_size") != 5 or row["lengths"][1] <= 140


@pytest.mark.parametrize("case", [case(**row) for row in pairwise(FACTORS, allowed)], ids=str)
def test_every_pair_of_features(case, rng):
    verify(case, rng)

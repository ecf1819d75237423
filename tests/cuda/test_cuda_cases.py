"""Every pair of features on an NVIDIA GPU, from the primitive to the kernels."""

from __future__ import annotations

import pytest
from cases import Case, verify
from features import FEATURES, MASKS, case
from pairwise import pairwise

DIMS = [
    *((d, None) for d in (1, 8, 40, 64, 72, 80, 96, 100, 112, 128, 160, 192, 256, 512)),
    *((96, 64), (192, 128), (192, 256), (256, 128), (300, 200), (576, 512)),
]
HEADS = [(1, 8, 2), (2, 4, 4), (1, 6, 1), (3, 4, 2), (1, 16, 2)]
LENGTHS = [
    *((1, 1), (1, 131), (3, 40), (65, 127), (127, 65), (9, 64), (33, 140), (7, 333), (70, 1)),
    *((1, 5000), (8, 4099), (64, 3001), (300, 700), (515, 1030)),
]
PATHS = [
    {"path": "fused"},
    *({"path": "chunked", "chunk_size": n} for n in (64, 1000)),
    {"path": "unfused", "block_rows": 16},
]
# K and V as caches hold them come first: the fast kernels take these.
FACTORS = {
    "dims": DIMS,
    "heads": HEADS,
    "lengths": LENGTHS,
    "dtype": ("float16", "bfloat16"),
    "masking": MASKS,
    **FEATURES,
    "pathway": PATHS,
}
PLAIN = {
    **FACTORS,
    "masking": MASKS[:5],
    "softcap": (None,),
    "q_layout": ("contiguous",),
    "k_layout": ("contiguous",),
    "v_layout": ("contiguous",),
    "pathway": PATHS[:2],
}


@pytest.mark.parametrize("case", [case(**row) for row in pairwise(FACTORS)], ids=str)
def test_every_pair_of_features(case, rng):
    verify(case, rng)


@pytest.mark.parametrize("case", [case(**row) for row in pairwise(PLAIN)], ids=str)
def test_every_pair_of_features_of_plain_operands(case, rng):
    verify(case, rng)


@pytest.mark.parametrize("path", ("unfused", "stock"))
@pytest.mark.parametrize("D", (64, 256, 512))
def test_float32(D, path, rng):
    """In blocks of stock operations; tools/run_cuda_tests.sh has them compute exactly."""
    case = Case(Lq=33, Lk=140, D=D, path=path, dtype="float32", mask="causal", lse=path != "stock")
    verify(case, rng)

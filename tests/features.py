"""Rows of features, as `pairwise` combines them, and the masks for every GPU backend."""

from __future__ import annotations

from cases import Case
from layouts import LAYOUTS, MASK_LAYOUTS

MASKS = [
    {"mask": "none"},
    *({"mask": "causal", "window": w} for w in (None, 1, 17, 4096)),
    *(
        {"mask": kind, "mask_shape": shape, "mask_layout": layout}
        for kind, shapes in (
            ("bool", ("", "K", "QK", "11QK", "B11K", "1H1K", "BHQK")),
            ("additive", ("1", "K", "Q1", "HQK", "11QK", "B1QK", "BH1K", "BHQK")),
        )
        for shape, layout in zip(shapes, (*MASK_LAYOUTS, *MASK_LAYOUTS))
    ),
]
# What a call has besides, and how its operands lie in memory.
FEATURES = {
    "softcap": (None, 3.0),
    "sinks": (False, True),
    "lse": (False, True),
    "q_layout": tuple(LAYOUTS),
    "k_layout": tuple(LAYOUTS),
    "v_layout": tuple(LAYOUTS),
}


def case(*, dims, heads, lengths, masking, pathway, **rest) -> Case:
    """The case that a row of features is."""
    B, Hq, Hkv = heads
    return Case(
        B=B, Hq=Hq, Hkv=Hkv, Lq=lengths[0], Lk=lengths[1], D=dims[0], Dv=dims[1],
        **masking, **pathway, **rest,
    )  # fmt: skip

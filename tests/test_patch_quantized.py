"""Attention over quantized caches, against float64 on the dequantized keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx_sdpa_ext
import numpy as np
import pytest
import reference
from cases import to_numpy
from mlx_lm.models import base
from mlx_sdpa_ext import device as devices
from mlx_sdpa_ext import limits, quantized
from mlx_sdpa_ext.words import Device, Problem
from tolerances import STOCK_TOLERANCES, TOLERANCES, check

STOCK = base.quantized_scaled_dot_product_attention
BLOCK = 64  # keys, so that a few hundred keys are many blocks


@dataclass(frozen=True)
class Case:
    B: int = 1
    Hq: int = 4
    Hkv: int = 2
    Lq: int = 33
    Lk: int = 300
    D: int = 128
    Dv: int = 128
    dtype: str = "float32"
    mask: str | tuple[str, str] | None = "causal"  # or ("bool" | "additive", dimensions)
    softcap: float | None = None
    bits: int = 8
    group_size: int = 64
    mode: str = "affine"

    def __str__(self) -> str:
        shape = f"b{self.B}h{self.Hq}_{self.Hkv}-{self.Lq}x{self.Lk}-d{self.D}_{self.Dv}"
        mask = self.mask if self.mask is None or isinstance(self.mask, str) else ".".join(self.mask)
        cap = f"-cap{self.softcap:g}" if self.softcap else ""
        return f"{shape}-{self.dtype}-{mask}{cap}-{self.mode}{self.bits}g{self.group_size}"


@dataclass
class Inputs:
    q: mx.array
    keys: quantized.Quantized
    values: quantized.Quantized
    mask: str | mx.array | None
    scale: float

    @classmethod
    def random(cls, case: Case, rng: np.random.Generator) -> Inputs:
        def normal(*shape: int) -> mx.array:
            values = mx.array(rng.standard_normal(shape).astype(np.float32))
            return values.astype(getattr(mx, case.dtype))

        def pack(x: mx.array) -> quantized.Quantized:
            how = {"group_size": case.group_size, "bits": case.bits, "mode": case.mode}
            return quantized.Quantized(mx.quantize(x, **how), **how)

        keys = pack(normal(case.B, case.Hkv, case.Lk, case.D))
        values = pack(normal(case.B, case.Hkv, case.Lk, case.Dv))
        mask = case.mask
        if isinstance(mask, tuple):
            kind, dims = mask
            sizes = {"B": case.B, "H": case.Hq, "Q": case.Lq, "K": case.Lk, "1": 1}
            shape = tuple(sizes[letter] for letter in dims)
            mask = mx.array(rng.random(shape) < 0.7) if kind == "bool" else normal(*shape)
        scale = 2.0 / case.D**0.5
        return cls(normal(case.B, case.Hq, case.Lq, case.D), keys, values, mask, scale)

    def exact(self, softcap: float | None = None) -> np.ndarray:
        mask = to_mask(self.mask)
        out, _ = reference.attention(
            to_numpy(self.q),
            to_numpy(self.keys.dequantize(self.keys.arrays)),
            to_numpy(self.values.dequantize(self.values.arrays)),
            scale=float(np.float32(self.scale)),
            mask=mask,
            softcap=softcap,
        )
        return out


def to_mask(mask: str | mx.array | None) -> reference.Mask:
    if mask is None or isinstance(mask, str):
        return mask
    return np.array(mask) if mask.dtype == mx.bool_ else to_numpy(mask)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(quantized, "MIN_BLOCK_KEYS", BLOCK)
    monkeypatch.setattr(quantized, "BLOCK_ELEMENTS", 0)


def attend(case: Case, inputs: Inputs, device: Device | None = None, block_rows: int = 0):
    device = device or devices.current()
    problem = quantized.problem_of(inputs.q, inputs.keys, inputs.values, inputs.mask, case.softcap)
    route = quantized.route(problem, device, limits.of(device)._replace(memory_limit=1))
    assert route.provider == "ext"
    assert bool(route.block_rows) == bool(block_rows)
    assert route.chunks == -(-case.Lk // BLOCK)
    return quantized.attention(
        inputs.q,
        inputs.keys,
        inputs.values,
        scale=inputs.scale,
        mask=inputs.mask,
        softcap=case.softcap,
        route=route._replace(block_rows=block_rows),
    )


CASES = [
    *(Case(dtype=dtype) for dtype in ("float32", "float16", "bfloat16")),
    *(Case(bits=bits) for bits in (2, 3, 4, 5, 6)),
    *(Case(group_size=group_size, bits=4) for group_size in (32, 128)),
    Case(dtype="bfloat16", mode="mxfp4", bits=4, group_size=32),
    Case(dtype="bfloat16", mode="mxfp8", bits=8, group_size=32),
    Case(dtype="bfloat16", mode="nvfp4", bits=4, group_size=16),
    Case(Hq=4, Hkv=4),
    Case(Hq=4, Hkv=1),
    Case(D=192, Dv=128),
    Case(D=256, Dv=256, Lk=BLOCK),
    Case(D=64, Dv=64, Lk=1, Lq=1),
    Case(Lk=BLOCK + 1),
    Case(Lq=1, mask=None),
    Case(Lq=300),  # as many queries as keys: whole blocks are hidden from most of them
    Case(Lq=1, mask=("bool", "B11K"), B=2),
    Case(mask=("bool", "QK")),
    Case(mask=("bool", "B1QK"), B=2),
    Case(mask=("bool", "BHQK"), B=2),
    Case(mask=("additive", "B1QK"), B=2),
    Case(mask=("additive", "HQ1")),
    Case(softcap=3.0),
    Case(softcap=3.0, mask=("bool", "B1QK"), B=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_blocks(case, rng):
    inputs = Inputs.random(case, rng)
    out = attend(case, inputs)
    assert str(out.dtype) == f"mlx.core.{case.dtype}"
    check(to_numpy(out), inputs.exact(case.softcap), TOLERANCES[case.dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unfused_blocks(case, rng):
    """Where there is no fused kernel: stock operations, merged."""
    inputs = Inputs.random(case, rng)
    no_kernels = devices.current()._replace(tiles=())
    out = attend(case, inputs, no_kernels, block_rows=10)
    assert str(out.dtype) == f"mlx.core.{case.dtype}"
    check(to_numpy(out), inputs.exact(case.softcap), STOCK_TOLERANCES[case.dtype])


def test_a_row_that_sees_no_key_is_zero(rng):
    case = Case(mask=("bool", "QK"))
    inputs = Inputs.random(case, rng)
    inputs.mask[3] = False
    out = to_numpy(attend(case, inputs))
    assert (out[:, :, 3] == 0).all()
    check(out, inputs.exact(), TOLERANCES[case.dtype])


def test_a_mask_of_a_wider_dtype_widens_the_result_as_in_stock(rng):
    case = Case(dtype="bfloat16", mask=("additive", "B1QK"))
    inputs = Inputs.random(case, rng)
    inputs.mask = inputs.mask.astype(mx.float32)
    stock = STOCK(inputs.q, *packed(inputs), inputs.scale, inputs.mask, 64, 8)
    out = attend(case, inputs)
    assert out.dtype == stock.dtype == mx.float32


def packed(inputs: Inputs) -> tuple:
    return tuple(inputs.keys.arrays), tuple(inputs.values.arrays)


# Of 6 bits by blocks, of 4 and 8 packed.
@pytest.mark.parametrize(("bits", "path"), [(4, "fused"), (6, "chunked"), (8, "fused")])
@pytest.mark.parametrize("mask", [None, "causal", ("bool", "B1QK"), ("additive", "QK")])
def test_in_the_place_of_mlx_lms_function(mask, bits, path, rng):
    inputs = Inputs.random(Case(mask=mask, bits=bits), rng)
    how = {"scale": inputs.scale, "mask": inputs.mask, "group_size": 64, "bits": bits}
    stock = STOCK(mx.array(inputs.q), *packed(inputs), **how)
    with mlx_sdpa_ext.patched():
        ours = base.quantized_scaled_dot_product_attention(inputs.q, *packed(inputs), **how)
        stats = mlx_sdpa_ext.stats()
    np.testing.assert_allclose(ours, stock, atol=1e-4)
    assert stats.paths == {path: 1}
    assert stats.fallbacks == 0


def test_a_scale_that_is_an_array(rng):
    inputs = Inputs.random(Case(), rng)
    with mlx_sdpa_ext.patched():
        out, expected = (
            base.quantized_scaled_dot_product_attention(
                inputs.q, *packed(inputs), scale, "causal", 64, 8
            )
            for scale in (mx.array(inputs.scale), inputs.scale)
        )
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": mx.ones((33, BLOCK), mx.bool_)},  # as many keys as a block, not as there are
        {"q": mx.ones((1, 3, 33, 128))},  # 3 query heads, 2 heads of keys
        {"q": mx.ones((1, 4, 33, 64))},
    ],
    ids=["mask", "heads", "head_dim"],
)
def test_wrong_arguments(wrong, rng):
    case = Case()
    inputs = Inputs.random(case, rng)
    for name, value in wrong.items():
        setattr(inputs, name, value)
    with pytest.raises(ValueError, match=r"mask|heads|last dimension"):
        attend(case, inputs)
    arguments = (*packed(inputs), inputs.scale, inputs.mask, 64, 8)
    with pytest.raises(ValueError, match=r"."):
        STOCK(mx.array(inputs.q), *arguments)
    with mlx_sdpa_ext.patched(), pytest.raises(ValueError, match=r"."):
        base.quantized_scaled_dot_product_attention(inputs.q, *arguments)


def test_keys_and_values_of_different_length(rng):
    inputs = Inputs.random(Case(), rng)
    longer = Inputs.random(Case(Lk=301), rng)
    inputs.values = longer.values
    with pytest.raises(ValueError, match="does not fit the keys"):
        attend(Case(), inputs)


PREFILL = Problem(1, 16, 2, 2048, 131072, 256, 256, "bfloat16", "causal")


def test_route_without_a_kernel_of_ours_leaves_what_fits_to_mlx_lm(monkeypatch):
    monkeypatch.undo()
    metal = Device.named("applegpu_g16s", memory=2 << 30)
    few = quantized.route(PREFILL._replace(Lq=1, mask="none"), metal, limits.of(metal))
    assert (few.path, few.provider) == ("stock", "stock")
    many = quantized.route(PREFILL, metal, limits.of(metal))
    assert (many.path, many.provider) == ("chunked", "ext")
    assert 1 <= many.block_rows < PREFILL.Lq
    # as many rows as fit: neither over the limit nor far below it
    assert limits.of(metal).block_limit / 2 < many.transient_bytes
    assert many.transient_bytes <= limits.of(metal).block_limit
    # mlx-lm's function has no softcap.
    capped = PREFILL._replace(Lq=1, mask="none", softcap=50.0)
    assert quantized.route(capped, metal, limits.of(metal)).provider == "ext"


def test_route_on_metal(monkeypatch):
    """mlx-lm's matmuls read the packed cache; ours are for many keys, and where its scores are."""
    monkeypatch.undo()
    metal = Device.named("applegpu_g16s", memory=32 << 30, tiles=devices.tiles())
    bounds = limits.of(metal)

    def provider(failed=None, **changed):
        return quantized.route(PREFILL._replace(**changed), metal, bounds, failed).provider

    assert provider() == "ext"
    assert provider(Lk=16385) == "ext"
    assert provider(Lk=16384) == "stock"
    assert provider(Lq=8) == "stock"
    assert provider(Lq=9) == "ext"
    assert provider(Lq=1, softcap=3.0) == "ext"
    assert provider(Lk=16384, Hq=128) == "ext"  # matmuls too long for the GPU watchdog
    # without a kernel that failed there
    assert provider("sdpa_prefill_x", Lk=16385) == "stock"
    blocks = quantized.route(PREFILL, metal, bounds, "sdpa_prefill_x")
    assert (blocks.provider, blocks.kernel) == ("ext", "dequantize, unfused")
    assert blocks.block_rows > 0
    assert "sdpa_prefill_x of this package failed here" in blocks.reason


def test_left_to_mlx_lm_it_is_mlx_lms(rng, monkeypatch):
    monkeypatch.setattr(quantized, "packed_kernel", lambda *_: None)
    monkeypatch.setattr(quantized, "route", lambda *_: quantized.Route("stock", "stock", "", "why"))
    inputs = Inputs.random(Case(), rng)
    with mlx_sdpa_ext.patched():
        out = base.quantized_scaled_dot_product_attention(
            mx.array(inputs.q), *packed(inputs), inputs.scale, "causal", 64, 8
        )
        assert mlx_sdpa_ext.stats().providers == {"stock": 1}
    assert mx.array_equal(out, STOCK(inputs.q, *packed(inputs), inputs.scale, "causal", 64, 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_that_of_a_block(dtype, rng, monkeypatch):
    """32 blocks; were they all dequantized at once, they would take 64 MiB in float32."""
    monkeypatch.undo()
    monkeypatch.setattr(quantized, "BLOCK_ELEMENTS", 1 << 19)
    case = Case(Lq=64, Lk=32768, D=256, Dv=256, Hkv=1, dtype=dtype)
    inputs = Inputs.random(case, rng)
    problem = quantized.problem_of(inputs.q, inputs.keys, inputs.values, "causal")
    device = devices.current()
    route = quantized.route(problem, device, limits.of(device))
    assert route.chunks == 32
    mx.eval(inputs.q, *inputs.keys.arrays, *inputs.values.arrays)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(
        quantized.attention(
            inputs.q, inputs.keys, inputs.values, scale=1 / 16, mask="causal", route=route
        )
    )
    assert mx.get_peak_memory() - before < 16 << 20

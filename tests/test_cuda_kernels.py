"""Every CUDA kernel compiles without complaint for every compute capability; no GPU needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import nvrtc
import pytest
from mlx_sdpa_ext import _ext
from pairwise import pairwise

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="NVRTC and CUDA's headers are not there on macOS"
)

ARCHS = ("80", "89", "90", "100", "120")


class Tile(NamedTuple):
    """A compiled tile of a kernel."""

    kernel: str
    D: int
    Dv: int
    bq: int
    bk: int


KERNELS = [
    Tile(row["kernel"], row["d_max"], row["dv_max"], row["bq"], row["bk"])
    for row in _ext.tiles()
    if row["backend"] == "cuda"
]

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
DIMS = (64, 96, 128, 160, 192, 256, 384, 512)
MASKS = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]  # kind, dtype of an additive one


class Variant(NamedTuple):
    """What one call of NVRTC compiles."""

    kernel: str
    arch: str
    macros: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        values = "-".join(f"{name.removeprefix('SDPA_').lower()}{x}" for name, x in self.macros)
        return f"{self.kernel}-sm{self.arch}-{values}"


def variant(
    tile: Tile,
    arch: str,
    dtype="bfloat16",
    mask=(0, 0),
    softcap=0,
    out_f32=0,
    vector=1,
    bits=0,
    group=64,
    cluster=2,
) -> Variant:
    macros = {
        "SDPA_DTYPE": DTYPES[dtype],
        "SDPA_D": tile.D,
        "SDPA_DV": tile.Dv,
        "SDPA_BQ": tile.bq,
        "SDPA_BK": 64 if tile.kernel == "decode" and bits else tile.bk,
        "SDPA_MASK": mask[0],
        "SDPA_MASK_DTYPE": mask[1],
        "SDPA_SOFTCAP": softcap,
        "SDPA_OUT_F32": out_f32,
        "SDPA_VECTOR": vector,
    }
    if tile.kernel in ("decode", "packed"):
        macros |= {"SDPA_BITS": bits, "SDPA_GROUP": group}
    if tile.kernel == "wide":
        macros["SDPA_CLUSTER"] = cluster
    return Variant(tile.kernel, arch, tuple(macros.items()))


def fits(tile: Tile, arch: str) -> bool:
    """The tiles that a device has no room for: the host asks decode_tile(), and goes on."""
    return tile.kernel != "decode" or arch not in ("89", "120") or tile.bq * tile.D <= 32 * 256


FEATURES = {  # what the kernels of every tile are compiled for, beside its sizes
    "dtype": ("float16", "bfloat16"),
    "mask": MASKS,
    "softcap": (0, 1),
    "out_f32": (0, 1),
    "vector": (1, 0),
}


def generic(kernel: str) -> Iterator[Variant]:
    """Pairs of features, not all of them at once."""
    tiles = [tile for tile in KERNELS if tile.kernel == kernel]
    dims = list(dict.fromkeys((tile.D, tile.Dv) for tile in tiles))
    by_size = {(tile.D, tile.Dv, tile.bq): tile for tile in tiles}
    factors = {
        "dims": dims,
        "bq": list(dict.fromkeys(tile.bq for tile in tiles)),
        "arch": ARCHS,
        **FEATURES,
    }

    def tile_of(row: dict) -> Tile:
        return by_size[(*row["dims"], row["bq"])]

    def allowed(row: dict) -> bool:
        return (*row["dims"], row["bq"]) in by_size and fits(tile_of(row), row["arch"])

    for row in pairwise(factors, allowed=allowed):
        features = {name: row[name] for name in FEATURES}
        yield variant(tile_of(row), row["arch"], **features)


def quantized() -> Iterator[Variant]:
    """Decode of more rows than packed takes, with every head dim that has such a tile."""
    chosen = {kernel_of(Lq, D, bits) for Lq in (9, 32, 64) for D in DIMS for bits in (4, 8)}
    for i, tile in enumerate(tile for tile in KERNELS if tile.kernel == "decode"):
        for bits in (4, 8):
            name = f"sdpa_decode_bfloat16_d{tile.D}_v{tile.Dv}_bq{tile.bq}_bk64_{bits}bit_g32_sm_90"
            if name in chosen:
                arch = ARCHS[(i + bits) % len(ARCHS)]
                arch = arch if fits(tile, arch) else "90"
                group = (32, 64, 128)[(i + bits // 4) % 3] if tile.D % 128 == 0 else 32
                yield variant(tile, arch, out_f32=1, bits=bits, group=group)


def kernel_of(Lq: int, D: int, bits: int) -> str:
    plan = _ext.plan(
        1, 1, 1, Lq, 1000, D, D, "bfloat16", backend="cuda", arch="sm_90", bits=bits, group_size=32
    )
    return plan["kernel"]


def packed() -> Iterator[Variant]:
    """Pairs of features."""
    tiles = {(tile.D, tile.Dv): tile for tile in KERNELS if tile.kernel == "packed"}
    factors = {
        "dims": list(tiles),
        "packing": [(bits, group) for bits in (4, 8) for group in (32, 64, 128)],
        "arch": ARCHS,
        **FEATURES,
    }

    def allowed(row: dict) -> bool:
        return all(n % row["packing"][1] == 0 for n in row["dims"])

    for row in pairwise(factors, allowed=allowed):
        features = {name: row[name] for name in FEATURES}
        bits, group = row["packing"]
        yield variant(tiles[row["dims"]], row["arch"], bits=bits, group=group, **features)


def hopper() -> Iterator[Variant]:
    for tile in KERNELS:
        if tile.kernel in ("narrow", "wide"):
            for dtype, out_f32, cluster in (("float16", 0, 2), ("bfloat16", 1, 1)):
                yield variant(tile, "90a", dtype=dtype, out_f32=out_f32, cluster=cluster)


def merges() -> Iterator[Variant]:
    for i, arch in enumerate(ARCHS):
        macros = {
            "SDPA_DTYPE": 1 + i % 2,
            "SDPA_PART_F32": int(i != 1),
            "SDPA_OUT_F32": int(i in (0, 3)),
            "SDPA_SOFTCAP": 0,
        }
        yield Variant("merge", arch, tuple(macros.items()))


VARIANTS = list(
    dict.fromkeys(
        [
            *generic("decode"),
            *generic("prefill"),
            *quantized(),
            *packed(),
            *hopper(),
            *merges(),
        ]
    )
)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_compiles(variant):
    log, cubin = nvrtc.compile(variant.kernel, variant.arch, dict(variant.macros))
    assert cubin[:4] == b"\x7fELF", log
    assert not nvrtc.complaints(log), log


# Fragments fill the registers, by count; a few words that the loop seldom needs may go to memory.
FEW_BYTES = 16
PLAIN = [
    variant(tile, arch)
    for tile in KERNELS
    if tile.kernel == "prefill" and tile.D != 576
    for arch in ("80", "90")
]


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_prefill_keeps_its_fragments_in_registers(variant):
    log, _ = nvrtc.compile(variant.kernel, variant.arch, dict(variant.macros))
    assert nvrtc.resources(log).spilled <= FEW_BYTES, log


def test_a_mistake_is_reported():
    log, cubin = nvrtc.compile("no_such_kernel", "90", {})
    assert not cubin and "no_such_kernel" in "\n".join(nvrtc.complaints(log))

"""stock_route(): what MLX does by itself, per version and device.

The Metal rows were checked against the function `use_fallback` of the published macOS wheels,
executed on 30,000 random calls for each version (docs/router.md); here are its edges.
"""

from __future__ import annotations

import pytest
from mlx_sdpa_ext.stock import FORCE_FUSED_SINCE, has_force_fused, stock_route, version
from mlx_sdpa_ext.words import Device, Problem

VERSIONS = ("0.31.2", "0.32.2", "0.32.4")
F, B, U = "fused", "blocked", "unfused"
K = "on request"  # unfused, with a fused kernel that force_fused=True reaches


def metal(mlx, arch="applegpu_g15s", **more):
    return Device.named(arch, mlx=mlx)._replace(**more)


def call(Lq=2048, Lk=32768, D=128, Dv=None, dtype="float16", Hq=16, Hkv=2, mask="causal", **more):
    return Problem(1, Hq, Hkv, Lq, Lk, D, Dv or D, dtype, mask, **more)


def how(problem, device):
    stock = stock_route(problem, device)
    return K if stock.how == U and stock.force_fused else stock.how


# (D, Dv): prefill of 2048 rows against a cache of 32768 keys, decode of one row; per MLX version
DIMS = {
    (64, 64): ((F, F, F), (F, F, F)),
    (72, 72): ((U, F, F), (U, U, U)),
    (80, 80): ((F, F, F), (U, U, U)),
    (96, 96): ((U, F, F), (F, F, F)),
    (112, 112): ((U, U, U), (U, U, U)),
    (128, 128): ((F, F, F), (F, F, F)),
    (192, 192): ((U, K, K), (U, K, K)),
    (256, 256): ((U, K, K), (F, F, F)),
    (512, 512): ((U, U, B), (U, U, F)),
    (96, 64): ((U, U, F), (U, U, F)),
    (192, 128): ((U, U, U), (U, F, F)),
    (256, 128): ((U, U, U), (U, U, U)),
    (576, 512): ((U, U, U), (U, U, U)),
}


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_metal_head_dims(dims):
    D, Dv = dims
    prefill = tuple(how(call(D=D, Dv=Dv), metal(mlx)) for mlx in VERSIONS)
    decode = tuple(how(call(Lq=1, D=D, Dv=Dv), metal(mlx)) for mlx in VERSIONS)
    assert (prefill, decode) == DIMS[dims]


# MLX 0.32.4 unless it says otherwise: a call and what is done with it
EDGES = {
    # the vector kernel: no more queries than keys, 32 rows of a GQA group
    "8-rows": (call(Lq=8, Hq=8), F),
    "8-rows-gqa-8": (call(Lq=8), U),
    "4-rows-gqa-8": (call(Lq=4), F),
    "8-rows-8-keys": (call(Lq=8, Lk=8, Hq=8), F),
    "8-rows-7-keys": (call(Lq=8, Lk=7, Hq=8), U),
    "9-rows": (call(Lq=9), F),
    # the full kernel: causal needs no more queries than keys
    "more-queries-causal": (call(Lq=33, Lk=32), U),
    "more-queries": (call(Lq=33, Lk=32, mask="none"), F),
    "more-queries-bool": (call(Lq=33, Lk=32, mask="bool"), F),
    # head dim 256: causal with as many keys as queries, from 2048 on
    "256-equal": (call(Lq=2048, Lk=2048, D=256), F),
    "256-equal-f32": (call(Lq=2048, Lk=2048, D=256, dtype="float32"), K),
    "256-equal-short": (call(Lq=2047, Lk=2047, D=256), K),
    "256-equal-no-mask": (call(Lq=2048, Lk=2048, D=256, mask="none"), K),
    # head dim 512: one row, GQA factor 8, no array mask, 1024 keys
    "512-decode-1023": (call(Lq=1, Lk=1023, D=512), U),
    "512-decode-1024": (call(Lq=1, Lk=1024, D=512), F),
    "512-decode-2-rows": (call(Lq=2, D=512), U),
    "512-decode-gqa-4": (call(Lq=1, D=512, Hkv=4), U),
    "512-decode-mask": (call(Lq=1, D=512, mask="bool"), U),
    "512-blocked": (call(Lq=1024, Lk=1024, D=512), B),
    "512-1023-rows": (call(Lq=1023, D=512), U),
    "512-f32": (call(D=512, dtype="float32"), U),
    "512-sinks": (call(D=512, sinks=True), U),
    "512-no-mask": (call(D=512, mask="none"), U),
    "float64": (call(dtype="float64"), U),
}


@pytest.mark.parametrize("name", EDGES)
def test_metal_edges(name):
    problem, expected = EDGES[name]
    assert how(problem, metal("0.32.4")) == expected


# The M5 generation: MLX version, call, what is done; then the same with MLX_ENABLE_TF32=0
ACCELERATED = {
    "256": ("0.32.4", call(Lq=1024, D=256), F, F),
    "256-f32": ("0.32.4", call(D=256, dtype="float32"), F, K),
    "256-bool": ("0.32.4", call(D=256, mask="bool"), F, F),
    "256-bool-0.32.2": ("0.32.2", call(D=256, mask="bool"), K, K),
    "256-0.32.2": ("0.32.2", call(D=256), F, F),
    "256-1023": ("0.32.4", call(Lq=1023, D=256), K, K),
    "256-no-mask": ("0.32.4", call(D=256, mask="none"), K, K),
    "256-equal-no-gain": ("0.32.4", call(Lq=1000, Lk=1000, D=256), K, K),
    "256-0.31": ("0.31.2", call(D=256), U, U),
    "192": ("0.32.4", call(D=192), K, K),
    "512": ("0.32.4", call(D=512), F, F),
    "512-16-heads-1024": ("0.32.4", call(Lq=1024, D=512), K, K),
    "512-32-heads-1024": ("0.32.4", call(Lq=1024, D=512, Hq=32), F, F),
    "512-f32": ("0.32.4", call(D=512, dtype="float32"), F, U),
    "512-bool": ("0.32.4", call(D=512, mask="bool"), K, K),
    "512-more-queries": ("0.32.4", call(Lq=33, Lk=32, D=512), U, U),
}


@pytest.mark.parametrize("name", ACCELERATED)
def test_metal_neural_accelerators(name):
    mlx, problem, expected, without_tf32 = ACCELERATED[name]
    assert how(problem, metal(mlx, "applegpu_g17s")) == expected
    assert how(problem, metal(mlx, "applegpu_g17s", tf32=False)) == without_tf32


def test_metal_512_min_keys():
    """MLX_SDPA_D512_MIN_KL=0 lifts the conditions of the vector kernel for head dim 512."""
    assert how(call(Lq=2, Lk=9, D=512), metal("0.32.4", d512_min_keys=0)) == F
    assert how(call(Lq=1, Lk=4095, D=512), metal("0.32.4", d512_min_keys=4096)) == U


CUDA = {
    "prefill": (call(), F),
    "prefill-72": (call(D=72), F),
    "prefill-no-multiple-of-8": (call(D=60), U),
    "prefill-192-128": (call(D=192, Dv=128), U),
    "prefill-256": (call(D=256), U),
    "prefill-f32": (call(dtype="float32"), U),
    "prefill-bool": (call(mask="bool"), F),
    "more-queries-causal": (call(Lq=33, Lk=32), U),
    "decode": (call(Lq=1), F),
    "decode-f32": (call(Lq=1, dtype="float32"), F),
    "decode-3-rows-f32": (call(Lq=3, dtype="float32"), F),
    "decode-4-rows-f32": (call(Lq=4, dtype="float32"), U),
    "decode-72": (call(Lq=1, D=72), U),
    "decode-bool": (call(Lq=1, mask="bool"), U),
    "decode-256": (call(Lq=1, D=256), U),
}


@pytest.mark.parametrize("mlx", VERSIONS)
@pytest.mark.parametrize("name", CUDA)
def test_cuda(name, mlx):
    problem, expected = CUDA[name]
    assert how(problem, Device.named("sm_90", mlx=mlx)) == expected


def test_cuda_before_ampere_has_no_cudnn_attention():
    assert how(call(), Device.named("sm_75")) == U
    assert how(call(Lq=1), Device.named("sm_75")) == F
    assert how(call(), Device.named("sm_80")) == how(call(), Device.named("sm_100")) == F


@pytest.mark.parametrize("mlx", VERSIONS)
def test_cpu_never_fuses(mlx):
    for D in (64, 128, 256):
        for Lq in (1, 2048):
            stock = stock_route(call(Lq=Lq, D=D), Device.named("avx2", mlx=mlx))
            assert (stock.how, stock.force_fused) == (U, False)


def test_force_fused_came_with_a_version():
    assert [has_force_fused(mlx) for mlx in VERSIONS] == [False, True, True]
    assert version("0.32.2.dev20260818") == FORCE_FUSED_SINCE
    for text in ("0.32", "mlx", ""):
        with pytest.raises(ValueError, match="mlx: got"):
            version(text)


def test_a_version_between_two_rows_follows_the_older_one():
    for between, older in {"0.32.3": "0.32.2", "0.32.1": "0.31.2", "0.40.0": "0.32.4"}.items():
        for D, Dv in DIMS:
            for Lq in (1, 2048):
                problem = call(Lq=Lq, D=D, Dv=Dv)
                assert stock_route(problem, metal(between)).how == how_plain(problem, older)


def how_plain(problem, mlx):
    return stock_route(problem, metal(mlx)).how

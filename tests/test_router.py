"""route(): which path, by whom and why, for named machines. Needs none of them."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from mlx_sdpa_ext import device as devices
from mlx_sdpa_ext import limits, router, stock
from mlx_sdpa_ext.words import ITEMSIZE, PATHS, Device, Problem, Tile

KiB, GiB = 2**10, 2**30
ALL = ("float32", "float16", "bfloat16")


def tile(backend, kernel, D, bq, dv=None, dtypes=ALL):
    low, high = D
    dv_low, dv_high = dv or D
    return Tile(backend, kernel, low, high, dv_low, dv_high, dtypes, bq, 32)


CPU_TILES = [tile("cpu", "decode", (1, 1024), 8), tile("cpu", "prefill", (1, 1024), 96)]
# Rows like those of Metal, less many (tests/test_explain_metal.py asks the compiled ones).
METAL_TILES = [
    tile("metal", "decode", (1, 576), 8),
    tile("metal", "middle", (1, 512), 32),
    tile("metal", "prefill", (1, 512), 64),
    tile("metal", "prefill", (576, 576), 16, dv=(512, 512)),
]
CUDA_TILES = [tile("cuda", "prefill", (1, 512), 64, dtypes=("float16", "bfloat16"))]

CPU = Device.named("avx512", tiles=CPU_TILES)
M1 = Device.named("applegpu_g13g", memory=16 * GiB)
M2_ULTRA = Device.named("applegpu_g14d", memory=128 * GiB)
M4_MAX = Device.named("applegpu_g16s", memory=36 * GiB)
M5_MAX = Device.named("applegpu_g17s", memory=64 * GiB)
H200 = Device.named("sm_90", memory=141 * 10**9)


def with_tiles(device, tiles):
    return device._replace(tiles=tuple(tiles))


def at(device, mlx):
    return device._replace(mlx=mlx)


def ask(Lq, Lk, D, Dv=None, dtype="bfloat16", Hq=16, Hkv=2, mask="causal", **more):
    return Problem(1, Hq, Hkv, Lq, Lk, D, Dv or D, dtype, mask, **more)


def route(problem, device, path="auto", force_fused=False, **changed):
    bounds = limits.of(device)._replace(**changed)
    return router.route(problem, device, bounds, path, force_fused)


STEP = 2048  # query rows of one of mlx-lm's prefill steps

# device, problem, path, provider, a part of the reason
CASES = {
    # CPU: stock never fuses, ours always does.
    "cpu-prefill": (CPU, ask(STEP, 131072, 256), "fused", "ext", "no fused kernel on the CPU"),
    "cpu-decode": (CPU, ask(1, 131072, 256), "fused", "ext", "each key and value once"),
    "cpu-small": (CPU, ask(9, 9, 64, dtype="float32"), "fused", "ext", "fastest"),
    "cpu-softcap": (CPU, ask(STEP, STEP, 256, softcap=50.0), "fused", "ext", "no softcap"),
    "cpu-window": (CPU, ask(STEP, STEP, 256, window=512), "fused", "ext", "no window"),
    "cpu-lse": (CPU, ask(STEP, STEP, 64, want_lse=True), "fused", "ext", "logsumexp"),
    "cpu-float64": (CPU, ask(64, 64, 64, dtype="float64"), "unfused", "ext", "for float64"),
    "cpu-float64-decode": (CPU, ask(1, 64, 64, dtype="float64"), "stock", "stock", "for float64"),
    "cpu-float64-window": (
        *(CPU, ask(1, 64, 64, dtype="float64", window=9)),
        *("unfused", "ext", "no window"),
    ),
    "cpu-wide": (CPU, ask(64, 64, 1025), "unfused", "ext", "these head dims"),
    "cpu-long": (CPU, ask(STEP, 1 << 20, 128), "fused", "ext", "fastest"),
    # Metal without kernels of ours: where none of them serves, or one has failed.
    "metal-128": (M4_MAX, ask(STEP, 131072, 128), "stock", "stock", "fuses it (full kernel)"),
    "metal-64": (M1, ask(STEP, STEP, 64, dtype="float32"), "stock", "stock", "full kernel"),
    "metal-decode-256": (M1, ask(1, 131072, 256), "stock", "stock", "vector kernel"),
    "metal-192-128-decode": (M1, ask(1, 4096, 192, 128), "stock", "stock", "vector kernel"),
    "metal-256-few-keys": (M4_MAX, ask(STEP, 16384, 256), "unfused", "ext", "faster"),
    "metal-256-seed": (M4_MAX, ask(STEP, 16385, 256), "fused", "stock", "fused_min_keys"),
    "metal-192-seed": (M4_MAX, ask(STEP, 16385, 192), "fused", "stock", "fused_min_keys"),
    "metal-256-ultra": (
        *(M2_ULTRA, ask(STEP, 32768, 256, Hq=64)),
        *("unfused", "ext", "watchdog"),
    ),
    "metal-256-watchdog": (M4_MAX, ask(STEP, 131072, 256), "unfused", "ext", "watchdog"),
    "metal-256-first-step": (M4_MAX, ask(STEP, STEP, 256), "stock", "stock", "full kernel"),
    "metal-256-m5": (M5_MAX, ask(STEP, 131072, 256), "stock", "stock", "full kernel"),
    "metal-256-0.31": (at(M4_MAX, "0.31.2"), ask(STEP, 65536, 256), "unfused", "ext", "no full"),
    "metal-256-softcap": (M4_MAX, ask(STEP, 65536, 256, softcap=9.0), "unfused", "ext", "softcap"),
    "metal-192-128": (M4_MAX, ask(STEP, 65536, 192, 128), "unfused", "ext", "no metal kernels"),
    "metal-512": (M4_MAX, ask(STEP, 65536, 512), "stock", "stock", "query-blocked"),
    "metal-512-sinks": (
        M4_MAX,
        ask(STEP, 65536, 512, sinks=True),
        "unfused",
        "ext",
        "head dim 512",
    ),
    "metal-512-decode": (M4_MAX, ask(1, 65536, 512), "stock", "stock", "vector kernel"),
    "metal-512-decode-mha": (M4_MAX, ask(1, 9999, 512, Hkv=16), "stock", "stock", "few query rows"),
    "metal-112": (M1, ask(STEP, STEP, 112), "unfused", "ext", "these head dims"),
    "metal-gqa-8x8": (M1, ask(8, 4096, 128), "stock", "stock", "few query rows"),
    "metal-9-rows": (M4_MAX, ask(9, 16385, 256), "fused", "stock", "fused_min_keys"),
    # Metal with kernels of ours: what design.md asks for.
    "tiles-128": (M4_MAX, ask(STEP, 131072, 128), "stock", "stock", "full kernel"),
    "tiles-256-few-keys": (M4_MAX, ask(STEP, 16384, 256), "unfused", "ext", "faster"),
    "tiles-256-seed": (M4_MAX, ask(STEP, 16385, 256), "fused", "ext", "fused_min_keys"),
    "tiles-256-long": (M4_MAX, ask(STEP, 131072, 256), "fused", "ext", "beyond fused_min"),
    "tiles-256-ultra": (M2_ULTRA, ask(STEP, 32768, 256, Hq=64), "fused", "ext", "fused_min_keys"),
    "tiles-256-0.31": (at(M4_MAX, "0.31.2"), ask(STEP, 65536, 256), "fused", "ext", "beyond"),
    "tiles-192-128": (M4_MAX, ask(STEP, 16385, 192, 128), "fused", "ext", "fused_min_keys"),
    "tiles-128-softcap": (M1, ask(STEP, STEP, 128, softcap=9.0), "fused", "ext", "fastest"),
    "tiles-112": (M1, ask(STEP, STEP, 112), "fused", "ext", "fastest"),
    "tiles-512-sinks": (M4_MAX, ask(STEP, 65536, 512, sinks=True), "unfused", "ext", "faster"),
    "tiles-512-decode": (M4_MAX, ask(1, 9999, 512, Hkv=16), "fused", "ext", "each key and value"),
    "tiles-576-512": (M4_MAX, ask(1, 9999, 576, 512), "fused", "ext", "each key and value"),
    "tiles-idle": (M4_MAX, ask(49, 131072, 256, Hq=8, Hkv=1), "fused", "ext", "min_keys"),
    # 9 to 48 query rows: fused by us at head dims where stock is not.
    "tiles-9-rows": (M4_MAX, ask(9, 4096, 256), "fused", "ext", "with few query rows"),
    "tiles-48-rows": (M1, ask(48, 100, 192, 128), "fused", "ext", "with few query rows"),
    "tiles-48-rows-512": (M1, ask(48, 4096, 512), "fused", "ext", "with few query rows"),
    "tiles-48-rows-m5": (M5_MAX, ask(48, 4096, 256), "fused", "ext", "with few query rows"),
    "tiles-49-rows": (M4_MAX, ask(49, 4096, 256), "unfused", "ext", "faster"),
    "tiles-9-rows-128": (M4_MAX, ask(9, 4096, 128), "stock", "stock", "full kernel"),
    "tiles-8x8-128": (M4_MAX, ask(8, 4096, 128), "fused", "ext", "each key and value"),
    # M5: matmuls have the neural accelerators, our kernels do not.
    "tiles-256-m5": (M5_MAX, ask(STEP, 131072, 256), "stock", "stock", "full kernel"),
    "tiles-192-m5": (M5_MAX, ask(STEP, 131072, 192), "unfused", "ext", "faster"),
    "tiles-192-m5-decode": (M5_MAX, ask(1, 131072, 192), "fused", "ext", "each key and value"),
    "tiles-112-m5": (M5_MAX, ask(STEP, 131072, 112), "fused", "ext", "fastest"),
    # CUDA: stock fuses up to head dim 128.
    "cuda-128": (H200, ask(STEP, 131072, 128), "stock", "stock", "cuDNN kernel"),
    "cuda-128-f32": (H200, ask(STEP, STEP, 128, dtype="float32"), "unfused", "ext", "no cuDNN"),
    "cuda-decode-128": (H200, ask(1, 131072, 128), "stock", "stock", "vector kernel"),
    "cuda-256": (H200, ask(STEP, 131072, 256), "unfused", "ext", "up to head dim 128"),
    "cuda-decode-256": (H200, ask(1, 131072, 256), "stock", "stock", "few query rows"),
    "cuda-tiles-256": (H200, ask(STEP, 131072, 256), "fused", "ext", "fastest"),
    "cuda-tiles-512": (H200, ask(STEP, 131072, 512), "fused", "ext", "fastest"),
    "cuda-tiles-f32": (H200, ask(STEP, STEP, 256, dtype="float32"), "unfused", "ext", "float32"),
}
TILES_OF = {"tiles": METAL_TILES, "cuda-tiles": CUDA_TILES}


@pytest.mark.parametrize("name", CASES)
def test_the_choice(name):
    device, problem, path, provider, reason = CASES[name]
    for prefix, tiles in TILES_OF.items():
        if name.startswith(prefix):
            device = with_tiles(device, tiles)
    chosen = route(problem, device)
    assert (chosen.path, chosen.provider) == (path, provider), chosen
    assert reason in chosen.reason


# Scores of 16 heads, 2048 x 8192 in bfloat16, before and after the softmax: 1 GiB.
SHORT = ask(STEP, 8192, 256)


@pytest.mark.parametrize(
    ("tiles", "limit", "path", "provider", "reason"),
    [
        ((), GiB, "unfused", "ext", "faster"),
        ((), GiB - 1, "fused", "stock", "exceed the memory limit"),
        (METAL_TILES, GiB, "unfused", "ext", "fit the memory limit"),
        (METAL_TILES, GiB - 1, "fused", "ext", "exceed the memory limit"),
    ],
)
def test_the_memory_limit_decides(tiles, limit, path, provider, reason):
    chosen = route(SHORT, with_tiles(M4_MAX, tiles), memory_limit=limit)
    assert (chosen.path, chosen.provider) == (path, provider)
    assert reason in chosen.reason


def test_even_at_512_memory_decides():
    """Above unfused_dim a fused prefill is taken where not even one row of scores fits."""
    device = with_tiles(M4_MAX, METAL_TILES)
    asked = ask(STEP, 1 << 20, 512, sinks=True)
    row = router.unfused_bytes(asked, rows=1)
    assert route(asked, device, memory_limit=row).path == "unfused"
    chosen = route(asked, device, memory_limit=row - 1)
    assert (chosen.path, chosen.provider) == ("fused", "ext")
    assert "exceed the memory limit" in chosen.reason


@pytest.mark.parametrize(("Lq", "over"), [(STEP, "prefill_over_stock"), (1, "decode_over_stock")])
def test_ours_is_taken_where_it_was_measured_to_be_faster_than_stocks(Lq, over):
    device = with_tiles(H200, CUDA_TILES)
    call = ask(Lq, 8192, 128)
    plain = {"decode_over_stock": False, "prefill_over_stock": False}
    assert route(call, device, **plain).provider == "stock"
    chosen = route(call, device, **{**plain, over: True})
    assert (chosen.path, chosen.provider) == ("fused", "ext")
    assert "faster" in chosen.reason
    assert route(call, device, "fused", **plain).provider == "stock"
    assert route(call, device, "fused", **{**plain, over: True}).provider == "ext"


@pytest.mark.parametrize(
    ("problem", "path", "provider"),
    [
        (ask(STEP, 131072, 256), "unfused", "ext"),
        (ask(STEP, 16385, 256), "fused", "stock"),
        (ask(1, 9999, 512, Hkv=16), "stock", "stock"),
        (ask(STEP, 16385, 256, window=9), "unfused", "ext"),
    ],
)
def test_a_kernel_that_failed_is_not_taken(problem, path, provider):
    device = with_tiles(M4_MAX, METAL_TILES)
    bounds = limits.of(device)
    assert router.route(problem, device, bounds).provider == "ext"
    chosen = router.route(problem, device, bounds, failed="sdpa_prefill_x")
    assert (chosen.path, chosen.provider) == (path, provider)
    assert chosen == router.route(problem, M4_MAX, bounds)._replace(reason=chosen.reason)
    assert "sdpa_prefill_x of this package failed here" in chosen.reason
    with pytest.raises(ValueError, match=r"'chunked' cannot serve.*sdpa_prefill_x of this package"):
        router.route(problem, device, bounds, "chunked", failed="sdpa_prefill_x")


def test_fused_min_keys_decides():
    device = with_tiles(M4_MAX, METAL_TILES)
    assert route(SHORT, device, fused_min_keys=8192).path == "unfused"
    assert route(SHORT, device, fused_min_keys=8191).path == "fused"


@pytest.mark.parametrize("limit", (1, 64 * KiB, 2**20, 2**28, GiB))
@pytest.mark.parametrize("name", CASES)
def test_auto_stays_within_the_limit_where_it_can(name, limit):
    """What exceeds it is fused by nobody and goes row by row."""
    device, problem, *_ = CASES[name]
    chosen = route(problem, device, memory_limit=limit)
    if chosen.transient_bytes > limit:
        assert (chosen.path, chosen.block_rows) == ("unfused", 1 if problem.Lq > 1 else 0)
        assert "even one row exceeds" in chosen.reason


def test_chunks_by_the_environment():
    for device in (CPU, with_tiles(M4_MAX, METAL_TILES)):
        asked = {"chunk_asked": True, "chunk_threshold": 1000, "chunk_size": 300}
        chosen = route(ask(512, 1000, 128), device, **asked)
        assert (chosen.path, chosen.chunks, chosen.chunk_size) == ("chunked", 4, 300)
        assert chosen.transient_bytes == 16 * 512 * (128 + 1) * 4  # O and lse, however many chunks
        assert route(ask(512, 999, 128), device, **asked).path != "chunked"
    assert route(ask(512, 1000, 128), M4_MAX, **asked).path == "stock"  # nothing to chunk with


@pytest.mark.parametrize(
    ("path", "device", "problem", "provider"),
    [
        ("fused", CPU, ask(STEP, 4096, 256), "ext"),
        ("fused", M4_MAX, ask(STEP, 4096, 128), "stock"),
        ("fused", with_tiles(M4_MAX, METAL_TILES), ask(STEP, 4096, 128), "stock"),
        ("fused", M4_MAX, ask(STEP, 131072, 256), "stock"),
        ("fused", with_tiles(M4_MAX, METAL_TILES), ask(STEP, 131072, 256), "ext"),
        ("fused", at(M4_MAX, "0.31.2"), ask(STEP, 4096, 128), "stock"),
        ("unfused", CPU, ask(STEP, 4096, 256), "ext"),
        ("unfused", M4_MAX, ask(1, 4096, 128), "ext"),
        ("chunked", CPU, ask(STEP, 4096, 256), "ext"),
        ("chunked", with_tiles(M4_MAX, METAL_TILES), ask(STEP, 65536, 128), "ext"),
        ("stock", CPU, ask(STEP, 4096, 256), "stock"),
        ("stock", H200, ask(STEP, 4096, 256), "stock"),
    ],
)
def test_a_path_that_is_asked_for_is_taken(path, device, problem, provider):
    chosen = route(problem, device, path)
    assert (chosen.path, chosen.provider) == (path, provider)
    assert chosen.reason.startswith(f"path='{path}' was asked for")


def test_stock_is_only_told_to_force_what_it_would_not_choose():
    assert route(ask(STEP, 131072, 256), M4_MAX, "fused").forces_stock
    assert route(ask(STEP, 16385, 256), M4_MAX).forces_stock
    assert not route(ask(STEP, 131072, 128), M4_MAX, "fused").forces_stock
    for name, (device, problem, *_) in CASES.items():
        if device.backend == "metal":
            old = route(problem, at(device, "0.31.2"))
            assert not old.forces_stock, f"{name}: MLX 0.31.2 has no force_fused"


def test_force_fused_is_path_fused():
    problem = ask(STEP, 4096, 256)
    for path in ("auto", "fused"):
        assert route(problem, M4_MAX, path, True) == route(problem, M4_MAX, "fused")
    for path in ("unfused", "chunked", "stock"):
        with pytest.raises(ValueError, match=f"force_fused=True and path='{path}' contradict"):
            route(problem, M4_MAX, path, True)


@pytest.mark.parametrize(
    ("path", "device", "problem", "says"),
    [
        ("stock", CPU, ask(9, 9, 64, softcap=1.0), "no softcap.*'fused', 'unfused', 'chunked'"),
        ("stock", CPU, ask(9, 9, 64, window=1), "no window"),
        ("stock", M1, ask(9, 9, 64, want_lse=True), "logsumexp.*'auto', 'unfused'"),
        ("fused", M1, ask(9, 9, 112), "no full kernel.*no metal kernels.*'unfused', 'stock'"),
        ("fused", at(M1, "0.31.2"), ask(9, 9, 256), "no full kernel"),
        ("fused", M1, ask(STEP, STEP, 512), "query-blocked"),
        ("chunked", M1, ask(STEP, STEP, 128), "no metal kernels.*'fused', 'unfused', 'stock'"),
        ("fused", H200, ask(9, 9, 256), "up to head dim 128"),
        ("fused", CPU, ask(9, 9, 1025), "got head dim 1025.*there are head dims 1-1024"),
        ("fused", CPU, ask(9, 9, 64, dtype="float64"), "float64.*bfloat16, float16, float32"),
        ("chunked", CPU, ask(9, 9, 1025), "got head dim 1025"),
        ("dense", CPU, ask(9, 9, 64), "path: got 'dense'; allowed are 'auto', 'fused'"),
    ],
)
def test_a_path_that_cannot_serve_is_refused(path, device, problem, says):
    with pytest.raises(ValueError, match=says):
        route(problem, device, path)


def random_problem(rng):
    D = rng.choice((1, 64, 72, 112, 128, 192, 256, 512, 576, 1025))
    mask = rng.choice(("none", "causal", "bool", "additive"))
    group = rng.choice((1, 2, 8, 16))
    return Problem(
        B=rng.choice((0, 1, 3)),
        Hq=2 * group,
        Hkv=2,
        Lq=rng.choice((0, 1, 8, 9, 2048, 5000)),
        Lk=rng.choice((1, 2048, 16384, 16385, 65536, 131072)),
        D=D,
        Dv=rng.choice((D, D, 128)),
        dtype=rng.choice(tuple(ITEMSIZE)),
        mask=mask,
        window=rng.choice((None, 1, 1024)) if mask == "causal" else None,
        softcap=rng.choice((None, None, 30.0)),
        sinks=rng.random() < 0.3,
        want_lse=rng.random() < 0.3,
    )


DEVICES = [
    CPU,
    *(at(d, mlx) for d in (M1, M4_MAX, M5_MAX, H200) for mlx in ("0.31.2", "0.32.2", "0.32.4")),
    *(with_tiles(d, METAL_TILES) for d in (M1, M2_ULTRA, M5_MAX)),
    with_tiles(H200, CUDA_TILES),
]


def forced_path(problem, device, bounds, path):
    """The path taken when `path` is asked for, or "refused"; all that a refusal offers is taken."""
    try:
        return router.route(problem, device, bounds, path).path
    except ValueError as error:
        refusal = str(error)
    offered = set(re.findall(r"'(\w+)'", refusal.partition("Supported")[2])) - {"auto"}
    assert path not in offered
    for other in PATHS:
        if other in offered:
            assert router.route(problem, device, bounds, other).path == other
        elif other != path:
            with pytest.raises(ValueError, match="cannot serve"):
                router.route(problem, device, bounds, other)
    return "refused"


def test_every_answer_is_consistent(request):
    """Random problems: whatever is answered can be done, and what can be done is found."""
    rng = random.Random(request.config.getoption("seed"))
    reasons = {device: set() for device in DEVICES}
    for device, _ in itertools.product(DEVICES, range(500)):
        problem = random_problem(rng)
        bounds = limits.of(device)._replace(memory_limit=rng.choice((2**20, 2**28, 2**34)))
        chosen = router.route(problem, device, bounds)
        reasons[device].add(chosen.reason)
        assert chosen.path in PATHS
        served = any(tile.serves(problem) for tile in device.tiles)
        if chosen.provider == "stock":
            assert stock.inexpressible(problem) is None
        elif chosen.path in ("fused", "chunked"):
            assert served
        if chosen.path == "fused" and chosen.provider == "stock":
            assert stock.stock_route(problem, device).force_fused
        if device.backend == "cpu" and served:
            assert chosen.path == "fused"
        assert chosen.flops == router.flops(problem)
        for path in PATHS:
            assert forced_path(problem, device, bounds, path) in (path, "refused")
    # `stats()` counts by reason: there are few, and no lengths are in them.
    assert max(map(len, reasons.values())) < 100
    numbers = set(re.findall(r"\d+", " ".join(set().union(*reasons.values()))))
    assert numbers <= {"8", "32", "64", "128", "192", "256", "512", "1024"}


@pytest.mark.parametrize(
    ("head_dims", "device", "prefill", "decode"),
    [
        ((256, 256), CPU, "ext", "ext"),
        ((1025, 64), CPU, None, None),
        ((128, 128), M1, "stock", "stock"),
        ((256, 256), M1, "stock", "stock"),
        ((256, 256), at(M1, "0.31.2"), None, "stock"),
        ((192, 128), M1, None, "stock"),
        ((192, 128), with_tiles(M1, METAL_TILES), "ext", "stock"),
        ((112, 112), M1, None, None),
        ((576, 512), with_tiles(M1, METAL_TILES), "ext", "ext"),
        ((128, 128), H200, "stock", "stock"),
        ((256, 256), H200, None, None),
    ],
)
def test_supports(head_dims, device, prefill, decode):
    answer = router.supports(*head_dims, "bfloat16", device, limits.of(device))
    assert (answer.prefill, answer.decode) == (prefill, decode)
    assert bool(answer) is (prefill is not None and decode is not None)
    assert answer.reason.startswith("prefill: ")
    assert "; decode: " in answer.reason


def test_named_devices():
    assert M5_MAX.neural_accelerators
    assert not M4_MAX.neural_accelerators
    assert not Device.named("applegpu_g17p").neural_accelerators
    assert Device.named("applegpu_g18p").neural_accelerators
    assert Device.named("neon", tiles=CPU_TILES + METAL_TILES).tiles == tuple(CPU_TILES)
    with pytest.raises(ValueError, match="arch: got 'g13g'; allowed are applegpu_g13g"):
        Device.named("g13g")


def test_a_failed_kernel_is_in_the_reason_of_what_takes_its_place():
    bounds = limits.of(M4_MAX)
    forced = router.route(ask(STEP, 16384, 256), M4_MAX, bounds, "fused", failed="sdpa_prefill_x")
    assert (forced.path, forced.provider) == ("fused", "stock")
    assert "sdpa_prefill_x of this package failed here" in forced.reason


def test_blocks_for_the_watchdog_are_in_the_reason():
    device = M1._replace(memory=1 << 40)
    bounds = limits.of(device)
    blocked = router.route(ask(STEP, 32768, 576, 512), device, bounds, "unfused")
    assert 0 < blocked.block_rows < STEP
    assert "fit the memory limit, in blocks of query rows" in blocked.reason
    assert "GPU watchdog" in blocked.reason
    wide = ask(STEP, 32768, 576, 512, Hq=4096)  # more than memory allows, and blocks shorter still
    blocked = router.route(wide, device, bounds, "unfused")
    assert 0 < blocked.block_rows < router.block_rows(wide, bounds.block_limit) < STEP
    assert "within the memory limit, and each matmul short" in blocked.reason
    whole = router.route(ask(64, 4096, 576, 512), device, bounds, "unfused")
    assert not whole.block_rows and "watchdog" not in whole.reason


def test_head_dims_are_listed_once():
    device = Device.named("applegpu_g13g", tiles=devices.tiles())
    with pytest.raises(ValueError, match="there are head dims") as raised:
        router.route(ask(STEP, STEP, 700), device, limits.of(device), "fused")
    listed = re.search(r"there are head dims (.*) in", str(raised.value))[1]
    spans = re.findall(r"[\d-]+ \(v [\d-]+\)", listed)
    assert len(spans) == len(set(spans)) > 0

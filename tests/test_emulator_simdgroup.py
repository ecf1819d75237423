"""What the lanes of a simdgroup do together gives what Metal's specification says."""

from __future__ import annotations

import numpy as np
import pytest
from emulator_kernels import SIZE, Bodies

pytestmark = pytest.mark.emulator

LANE = np.arange(32)


def shuffled(source):
    return lambda x: x[:, source]


# What each body writes, as a function of `in` in rows of 32 lanes.
CASES = {
    "simd_shuffle": ("simd_shuffle(in[i], 31 - lane)", shuffled(31 - LANE)),
    "simd_shuffle_xor": ("simd_shuffle_xor(in[i], 5)", shuffled(LANE ^ 5)),
    "simd_shuffle_rotate_up": ("simd_shuffle_rotate_up(in[i], 3)", shuffled((LANE - 3) % 32)),
    "simd_shuffle_rotate_down": ("simd_shuffle_rotate_down(in[i], 3)", shuffled((LANE + 3) % 32)),
    "simd_broadcast": ("simd_broadcast(in[i], 7)", shuffled(0 * LANE + 7)),
    "simd_broadcast_first": ("simd_broadcast_first(in[i])", shuffled(0 * LANE)),
    # half: to the bit, so that no value is rounded on its way
    "half": ("float(simd_shuffle_xor(half(in[i]), 1))", shuffled(LANE ^ 1)),
    "vector": ("simd_shuffle_xor(float2(in[i], 1), 1).x", shuffled(LANE ^ 1)),
    "simd_sum": ("simd_sum(in[i])", lambda x: x.sum(1, keepdims=True) + 0 * x),
    "simd_product": ("simd_product(1 + in[i] / 64)", lambda x: (1 + x / 64).prod(1)[:, None]),
    "simd_max": ("simd_max(in[i])", lambda x: x.max(1)[:, None]),
    "simd_min": ("simd_min(in[i])", lambda x: x.min(1)[:, None]),
    "simd_and": (
        "float(simd_and(uint(in[i]) | 12))",
        lambda x: np.bitwise_and.reduce(x.astype(int) | 12, axis=1)[:, None],
    ),
    "simd_or": (
        "float(simd_or(int(in[i]) & 48))",
        lambda x: np.bitwise_or.reduce(x.astype(int) & 48, axis=1)[:, None],
    ),
    "simd_xor": (
        "float(simd_xor(ushort(in[i])))",
        lambda x: np.bitwise_xor.reduce(x.astype(int), axis=1)[:, None],
    ),
    "simd_max of int": (
        "float(simd_max(int(in[i]) - 100))",
        lambda x: x.max(1)[:, None] - 100,
    ),
    "simd_max of uint": (  # as an int the largest were -1
        "float(simd_max(lane == 9 ? 4294967295u : uint(in[i])) == 4294967295u)",
        lambda x: 0 * x + 1,
    ),
    "simd_all": ("simd_all(in[i] < 40)", lambda x: (x < 40).all(1)[:, None]),
    "simd_any": ("simd_any(in[i] == 40)", lambda x: (x == 40).any(1)[:, None]),
    "simd_prefix_inclusive_sum": ("simd_prefix_inclusive_sum(in[i])", lambda x: x.cumsum(1)),
    "simd_prefix_exclusive_sum": ("simd_prefix_exclusive_sum(in[i])", lambda x: x.cumsum(1) - x),
    "simd_prefix sum of int": (
        "float(simd_prefix_exclusive_sum(int(in[i]) - 20))",
        lambda x: (x - 20).cumsum(1) - (x - 20),
    ),
    "simd_ballot": (
        "float((simd_vote::vote_t(simd_ballot(in[i] > 20)) >> lane) & 1)",
        lambda x: x > 20,
    ),
    "simd_vote": ("float(simd_ballot(in[i] > 20).any())", lambda x: (x > 20).any(1)[:, None]),
}
DEVICE = Bodies({name: f"out[i] = {expression};" for name, (expression, _) in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_lanes(name, rng):
    x = rng.permutation(SIZE).astype(np.float32)
    out, report = DEVICE.run(name, buffers={1: x})
    want = CASES[name][1](x.reshape(2, 32).astype(np.float64))
    np.testing.assert_allclose(out.reshape(2, 32), np.broadcast_to(want, (2, 32)), rtol=1e-6)
    assert report.findings == []


# `in` is A and `table` B, both 8x8.
MATRICES = {
    "multiply": ("simdgroup_multiply(c, a, b);", lambda a, b: a @ b),
    "multiply and add": ("simdgroup_multiply_accumulate(c, a, b, a);", lambda a, b: a @ b + a),
    "diagonal": (
        "simdgroup_float8x8 d(3); simdgroup_multiply_accumulate(c, d, a, b);",
        lambda a, b: 3 * a + b,
    ),
    "filled": (
        "c = make_filled_simdgroup_matrix<float, 8, 8>(2); simdgroup_multiply(c, a, c);",
        lambda a, b: a @ np.full((8, 8), 2.0),
    ),
    "transposed": ("simdgroup_load(c, in, 8, ulong2(0), true);", lambda a, b: a.T),
    "origin": ("simdgroup_load(c, xs, 16, ulong2(8, 0));", lambda a, b: b),
    "product of half": (
        "simdgroup_half8x8 h, k; h.thread_elements() = half2(a.thread_elements());"
        "k.thread_elements() = half2(b.thread_elements()); simdgroup_multiply(c, h, k);",
        lambda a, b: a.astype(np.float16).astype(float) @ b.astype(np.float16).astype(float),
    ),
}
MATRIX = """\
threadgroup float xs[128];
for (uint n = lane; n < 64; n += 32) {{
  xs[n / 8 * 16 + n % 8] = in[n];
  xs[n / 8 * 16 + n % 8 + 8] = out[n];
}}
BARRIER(threadgroup);
simdgroup_float8x8 a, b, c;
simdgroup_load(a, in);
simdgroup_load(b, out);
simdgroup_barrier(mem_flags::mem_device);
{}
simdgroup_store(c, out);"""
MULTIPLIER = Bodies({name: MATRIX.format(body) for name, (body, _) in MATRICES.items()})


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name, rng):
    a, b = rng.standard_normal((2, 8, 8)).astype(np.float32)
    out, report = MULTIPLIER.run(name, threads=32, buffers={0: b.copy(), 1: a}, poison=())
    want = MATRICES[name][1](a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(out.reshape(8, 8), want, rtol=1e-5, atol=1e-5)
    assert report.findings == []

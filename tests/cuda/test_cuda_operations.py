"""What MLX does with a call on an NVIDIA GPU: graphs, streams, threads, transforms."""

from __future__ import annotations

import json
import threading

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import Case, call, expected, make, options, replace, to_numpy
from command_line import call_in_process
from mlx_sdpa_ext import attention
from tolerances import check, check_grad, check_lse

DECODE = Case(B=1, Hq=16, Hkv=2, Lq=1, Lk=5000, D=256, dtype="bfloat16")
CASES = {
    "narrow": replace(DECODE, Lq=70, mask="causal"),
    "narrow, few rows": DECODE,
    "wide": replace(DECODE, Lq=200, D=512, mask="causal"),
    "decode": replace(DECODE, D=512),
    "prefill": replace(DECODE, Lq=70, D=512, softcap=5.0),
    "chunked": replace(DECODE, path="chunked", chunk_size=700),
    "unfused": replace(DECODE, Lq=70, Lk=500, path="unfused", block_rows=32),
}


def verified(case, x, results, want=None):
    out, lse = want or expected(case, x)
    check(to_numpy(results[0]), out, case.tolerance)
    if case.lse:
        check_lse(to_numpy(results[1]), lse, case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_compiled(name, rng):
    case = CASES[name]
    compiled = mx.compile(lambda q, k, v: call(case, q, k, v, mask_of(case), None))
    for Lk in (case.Lk, case.Lk + 1, case.Lk):
        x = make(replace(case, Lk=Lk), rng)
        verified(case, x, compiled(*x.arrays))  # with the scale of the trace


def mask_of(case: Case) -> str | None:
    return "causal" if case.mask == "causal" else None


@pytest.mark.parametrize("name", CASES)
def test_mapped(name, rng):
    case = CASES[name]
    xs = [make(case, rng) for _ in range(3)]
    stacked = [mx.stack(arrays) for arrays in zip(*(x.arrays for x in xs))]
    mapped = mx.vmap(lambda q, k, v: tuple(call(case, q, k, v, mask_of(case), None)))(*stacked)
    for i, x in enumerate(xs):
        verified(case, x, [part[i] for part in mapped])


@pytest.mark.parametrize("name", CASES)
def test_gradients(name, rng):
    case = replace(CASES[name], lse=True, Lq=min(CASES[name].Lq, 70), Lk=500)
    x = make(case, rng)
    d_out, d_lse = (rng.standard_normal(a.shape) for a in expected(case, x))
    given = [mx.array(d_out).astype(mx.bfloat16), mx.array(d_lse, dtype=mx.float32)]
    _, grads = mx.vjp(lambda *a: call(case, *a, mask_of(case), None), list(x.arrays), given)
    want = reference.gradients(
        x.q, x.k, x.v, to_numpy(given[0]), to_numpy(given[1]), mask=x.mask, **options(case)
    )
    for grad, name in zip(grads, "qkv"):
        check_grad(to_numpy(grad), getattr(want, name), case.tolerance, f"d{name}")


def test_kernels_of_all_kinds_in_one_graph(rng):
    """In every order: MLX updates the graph that it has with the kernels of the next one."""
    xs = {name: make(case, rng) for name, case in CASES.items()}
    wants = {name: expected(case, xs[name]) for name, case in CASES.items()}
    names = list(CASES)
    for _ in range(6):
        rng.shuffle(names)
        results = {
            name: call(CASES[name], *xs[name].arrays, mask_of(CASES[name]), None) for name in names
        }
        mx.eval(list(results.values()))
        for name in names:
            verified(CASES[name], xs[name], results[name], wants[name])


@pytest.mark.parametrize("name", CASES)
def test_a_chain_of_calls(name, rng):
    """Each call's queries are the output of the one before, and its scratch is freed meanwhile."""
    case = CASES[name]
    x = make(case, rng)
    q, k, v = x.arrays
    steps = []
    for _ in range(20):
        q = call(case, q, k, v, mask_of(case), None)[0]
        steps.append(q)
    mx.eval(steps)
    q = x.arrays[0]
    for got in steps:
        want = call(case, q, k, v, mask_of(case), None)[0]
        mx.eval(want)
        mx.synchronize()
        assert mx.array_equal(got, want)
        q = got


@pytest.mark.parametrize("name", CASES)
def test_one_stream_waits_for_another(name, rng):
    case = CASES[name]
    x = make(case, rng)
    want = expected(case, x)
    first, second, third = (mx.new_stream(mx.gpu) for _ in range(3))
    for _ in range(10):
        q = mx.multiply(x.arrays[0], 2.0, stream=first)
        q = mx.divide(q, 2.0, stream=first)
        results = call(case, q, *x.arrays[1:], mask_of(case), None, stream=second)
        results = [mx.add(part, 0.0, stream=third) for part in results]
        verified(case, x, results, want)


def test_threads(rng):
    """Each with a stream of its own, as MLX asks of them."""
    xs = {name: make(case, rng) for name, case in CASES.items()}
    wants = {name: expected(case, xs[name]) for name, case in CASES.items()}
    errors = []

    def work(name):
        try:
            stream = mx.new_stream(mx.gpu)
            for _ in range(10):
                case, x = CASES[name], xs[name]
                results = call(case, *x.arrays, mask_of(case), None, stream=stream)
                verified(case, x, results, wants[name])
        except BaseException as error:
            errors.append(f"{name}: {error!r}")

    mx.eval([x.arrays for x in xs.values()])
    threads = [threading.Thread(target=work, args=(name,)) for name in CASES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_memory_is_that_of_the_output(rng):
    """131072 keys at head dim 256: no more than the output and the parts of the splits."""
    q, k, v = (
        mx.array(rng.standard_normal((1, heads, rows, 256)).astype(np.float32)).astype(mx.bfloat16)
        for heads, rows in ((16, 1024), (2, 131072), (2, 131072))
    )
    mx.eval(q, k, v)

    def run():
        out = attention.scaled_dot_product_attention(q, k, v, scale=1 / 16, mask="causal")
        mx.eval(out)

    run()
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run()
    mx.synchronize()
    assert mx.get_peak_memory() - before <= 2 * q.nbytes


def test_doctor_finds_the_compiled_kernels(capsys):
    mx.eval(call(DECODE, *make(DECODE, np.random.default_rng(0)).arrays, None, None))
    code, output, errors = call_in_process(capsys, "doctor", "--json")
    assert code == 0, errors
    found = json.loads(output)
    assert found["device"]["backend"] == "cuda"
    assert found["device"]["kernel_cache"]["kernels"] >= 1

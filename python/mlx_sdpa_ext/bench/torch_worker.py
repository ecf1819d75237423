"""PyTorch's attention, matmul and reductions on its GPU: a process that answers requests.

    PYTHON torch_worker.py      # of an environment with torch; no MLX is imported

It writes what it is as one line of JSON, then answers each line of JSON on standard input with one.
torch_beside.py asks; times are taken as side_by_side.py takes them.
"""

import sys

sys.path.pop(0)  # this folder: its cuda.py would hide NVIDIA's package of that name

import functools
import itertools
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
BATCH_SECONDS, MOST_CALLS = 5e-3, 100


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    answer(about())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(ANSWERS[request.pop("what")](**request))
        except Exception as error:  # it may be anything, and is the answer
            answer({"error": (str(error).strip() or type(error).__name__).splitlines()[0]})
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def answer(found: dict) -> None:
    print(json.dumps(found), flush=True)


def about() -> dict:
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
    }


@torch.no_grad()
def attention(backend, Hq, Hkv, Lq, Lk, D, Dv, dtype, causal, sets, repeats) -> dict:
    """One of torch's kernels, or its refusal.

    is_causal aligns the first query with the first key; a step against a cache aligns the last, and
    is asked without a mask: at 2048 rows on 131072 keys that is 0.8 % more work.
    """
    mask = causal and Lq == Lk
    shapes = [(1, Hq, Lq, D), (1, Hkv, Lk, D), (1, Hkv, Lk, Dv)]
    some = [[torch.randn(s, device=DEVICE, dtype=getattr(torch, dtype)) for s in shapes]]
    some += [[torch.randn_like(a) for a in some[0]] for _ in range(sets - 1)]

    def call(qkv):
        F.scaled_dot_product_attention(*qkv, is_causal=mask, enable_gqa=Hq != Hkv)

    with sdpa_kernel(BACKENDS[backend]):
        return timed(call, some, repeats) | {"mask": "causal" if mask else None}


def gemm(n, dtype, repeats) -> dict:
    """[n, n] @ [n, n]."""
    a, b = (torch.randn(n, n, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(2))
    return timed(lambda _: a @ b, [None], repeats)


def read(nbytes, sets, repeats) -> dict:
    """The faster of two reductions over an array of so many bytes."""
    some = random_arrays(nbytes, sets)
    found = {f.__name__: timed(f, some, repeats) for f in (torch.sum, torch.amax)}
    name = min(found, key=lambda name: found[name]["median_s"])
    return found[name] | {"by": name}


@functools.lru_cache(4)
def random_arrays(nbytes, sets) -> list:
    return [torch.randn(nbytes // 4, device=DEVICE) for _ in range(sets)]


def timed(call, inputs, repeats) -> dict:
    """Seconds of a call: t = (T(2 n) - T(n)) / n on inputs that take turns."""
    turn = itertools.cycle(inputs)

    def take(calls):
        start = time.perf_counter()
        for _ in range(calls):
            call(next(turn))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    take(2)
    once = min(take(1), take(1))
    calls = max(1, min(MOST_CALLS, round(BATCH_SECONDS / once)))
    if once >= BATCH_SECONDS:
        times = [take(1) for _ in range(repeats)]
    else:
        pairs = [(take(calls), take(2 * calls)) for _ in range(repeats)]
        times = [
            (more - fewer) / calls if more > fewer else more / (2 * calls) for fewer, more in pairs
        ]
    median = statistics.median(times)
    spread = {"best_s": min(times), "worst_s": max(times), "repeats": repeats, "calls": calls}
    return {"median_s": median} | spread


ANSWERS = {"attention": attention, "gemm": gemm, "read": read}

if __name__ == "__main__":
    main()

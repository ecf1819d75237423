"""Faults planted in the Metal kernels, one at a time, and the check that has to catch each.

python tests/metal_faults.py    plants all of them and prints which check caught which
"""
# ruff: noqa: E501  (a table: one fault a line)

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import metal_checks
import pytest

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    name: str
    file: str  # in kernels/metal
    old: str
    new: str
    caught_by: str  # a check of metal_checks.py that has to object
    probes: str = "prefill"

    def plant(self, folder: Path) -> None:
        """Changes the file in a copy of kernels/."""
        path = folder / "metal" / self.file
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.name}: {text.count(self.old)} places to plant it"
        path.write_text(text.replace(self.old, self.new))


def no_barrier(name: str, file: str, around: str, probes: str = "prefill", caught_by="race"):
    """Deletes the barrier at the | of `around`."""
    before, after = around.split("|")
    return Fault(name, file, before + BARRIER + after, before + after, caught_by, probes)


BARRIERS = [
    no_barrier("barrier after the first K block", "prefill.h", "|\n\n  while (block < blocks)"),
    no_barrier("barrier between S and P", "prefill.h", "    |\n\n    const int next"),
    no_barrier("barrier after P V", "prefill.h", "    |\n    if (kShared && next"),
    no_barrier("barrier before P V, memory shared", "prefill.h", "if (kShared) |", "shared"),
    no_barrier(
        "barrier after the next K block, memory shared", "prefill.h",
        "stage, thread_index);\n      |", "shared",
    ),
    no_barrier("barrier before the flags of blocks", "lookahead.h", "  |  // the flags"),
    no_barrier("barrier after the flags of blocks", "lookahead.h", "  |\n  return simd_sum"),
    no_barrier("barrier between partial scores", "decode.h", "      |", "halves"),
    no_barrier("barrier after the rows' states", "decode.h", "  |\n  RowState total", "decode"),
    no_barrier("barrier between merge rounds", "decode.h", "if (round > 0) |", "wide"),
    no_barrier(
        "barrier between the simdgroups' O", "decode.h", "    |\n    for (int i = thread_index",
        "decode",
    ),
]  # fmt: skip

SYNCHRONISATION = [
    Fault(
        "a barrier without its memory", "prefill.h", f"{BARRIER}\n\n    const int next",
        "threadgroup_barrier(mem_flags::mem_none);\n\n    const int next", "race",
    ),
    Fault(
        "a barrier that some simdgroups skip", "prefill.h", f"    {BARRIER}\n\n    const int next",
        f"    if (wm == 0) {BARRIER}\n\n    const int next", "barrier-mismatch",
    ),
    Fault(
        "a shuffle that some lanes skip", "prefill.h", "m = row_max(m);",
        "if (at.row != 7) m = row_max(m);", "divergent",
    ),
    Fault(
        "one buffer where two take turns", "decode.h", "half_of_Xs ^= 1;", "", "race", "halves",
    ),
    Fault(
        "partial scores written by one of two simdgroups", "prefill.h", "if (WD > 1) {\n      threadgroup float2* X",
        "if (WD > 1 && wd == 0) {\n      threadgroup float2* X", "uninitialised",
    ),
    Fault(
        "K and V in the same memory", "prefill.h", "constexpr int kVs = kShared ? 0 : BK * LDK / kWide;",
        "constexpr int kVs = 0;", "race",
    ),
    Fault(
        "all row tiles the first", "prefill.h", "const int tile = part.row_tile0 + part.row_tiles - 1 - int(group.x);",
        "const int tile = part.row_tile0;", "device-race",
    ),
    Fault(
        "all splits in the same place", "prefill.h", "if (part.splits > 1) out_row += int64_t(split) * p.B * p.Hq * p.Lq;",
        "", "device-race",
    ),
    Fault("rows beyond the end written", "prefill.h", "if (!my.valid) continue;", "", "device-race"),
]  # fmt: skip

EDGES = [
    Fault("causal: one key less", "mask.h", "if (kCausal && key > position + p.q_offset)", "if (kCausal && key >= position + p.q_offset)", "numbers"),
    Fault("causal: the last key of the range", "mask.h", "end = min(end, last + p.q_offset + 1)", "end = min(end, last + p.q_offset)", "numbers"),
    Fault("causal: blocks taken for whole", "mask.h", "key + n - 1 > first + p.q_offset", "key + n - 1 > last + p.q_offset", "numbers"),
    Fault("window: one key less", "mask.h", "  return !kWindow || key > position + p.q_offset - p.window;", "  return !kWindow || key > position + p.q_offset - p.window + 1;", "numbers"),
    Fault("window: the first key of the range", "mask.h", "first + p.q_offset - p.window + 1)", "first + p.q_offset - p.window + 2)", "numbers"),
    Fault("window: blocks taken for whole", "mask.h", "key > last + p.q_offset - p.window;", "key > first + p.q_offset - p.window;", "numbers"),
    Fault("one key beyond the last", "prefill.h", "(k >= keys.end ||", "(k > keys.end ||", "numbers"),
    Fault("one row of K or V beyond the last", "tile.h", "const bool there = row < keys &&", "const bool there = row <= keys &&", "out-of-bounds"),
    Fault("columns beyond D", "tile.h", "    if (col + i < n) x[i] = row[int64_t(col + i) * stride];", "    x[i] = row[int64_t(col + i) * stride];", "numbers"),
    Fault("columns beyond Dv written", "tile.h", "    if (col + i < n) row[col + i] = T(x[i]);", "    row[col + i] = T(x[i]);", "device-race"),
    Fault("rows beyond the last read", "tile.h", "const int inside = min(r, rows - 1);", "const int inside = r;", "out-of-bounds"),
    Fault("decode: one key beyond the last", "decode.h", "my.valid && k < keys.end &&", "my.valid && k <= keys.end &&", "numbers", "decode"),
    Fault("decode: columns beyond Dv written", "decode.h", "if (!row.valid || dv >= p.Dv) continue;", "if (!row.valid) continue;", "device-race", "decode"),
    Fault("merge: rows beyond the last", "merge.h", "  if (row >= p.rows) return;\n", "", "out-of-bounds", "merge"),
    Fault("merge: the last part left out", "merge.h", "const int count = min(32, p.n - first);", "const int count = min(32, p.n - 1 - first);", "numbers", "merge"),
]  # fmt: skip

STREAM = [
    Fault("barrier after Q, decode", "decode.h", "threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);", "", "race", "decode"),
    Fault("decode: keys beyond the last loaded", "stream.h", "first + 1 < keys ? K.n : 0", "first < keys ? K.n : 0", "out-of-bounds", "decode"),
    Fault("decode: columns beyond D", "tile.h", "const T x = col < n ? row[int64_t(col) * stride] : T(0);", "const T x = row[int64_t(col) * stride];", "numbers", "decode"),
    Fault("decode: Q permuted otherwise than K", "stream.h", "Qt[i] = pair(x[i], y[i]);", "Qt[i] = pair(x[i], x[i]);", "numbers", "decode"),
    Fault("decode: columns of V swapped", "stream.h", "pair(x[2 * i], x[2 * i + 1]));", "pair(x[2 * i + 1], x[2 * i]));", "numbers", "decode"),
]  # fmt: skip

LANES = [
    Fault("wrong row of a lane", "tile.h", "((i >> 1) & 3)", "((i >> 2) & 3)", "numbers"),
    Fault("wrong column of a lane", "tile.h", "((i >> 3) & 1) * 4 + (i & 1) * 2", "((i >> 2) & 1) * 4 + (i & 1) * 2", "numbers"),
    Fault("wrong shuffle in the maximum", "tile.h", "return max(x, simd_shuffle_xor(x, 8));", "return max(x, simd_shuffle_xor(x, 4));", "numbers"),
    Fault("wrong shuffle in the sum", "tile.h", "return x + simd_shuffle_xor(x, 8);", "return x + simd_shuffle_xor(x, 16);", "numbers"),
    Fault("Q permuted otherwise than K", "prefill.h", "Qt[i][g * W + f] = pair(x[f], x[W + f]);", "Qt[i][g * W + f] = pair(x[2 * f], x[2 * f + 1]);", "numbers"),
    Fault("columns of V swapped", "prefill.h", "pair(x[2 * f], x[2 * f + 1]));", "pair(x[2 * f + 1], x[2 * f]));", "numbers"),
    Fault("partial scores not exchanged", "prefill.h", "St[i][n] += x[(wd ^ 1) * kTile];", "", "numbers"),
    Fault("partial scores of itself twice", "prefill.h", "St[i][n] += x[(wd ^ 1) * kTile];", "St[i][n] += x[wd * kTile];", "numbers"),
    Fault("two of four partial scores", "prefill.h", "+= x[(wd ^ 2) * kTile] + x[(wd ^ 3) * kTile];", "+= x[(wd ^ 2) * kTile];", "numbers", "four"),
    Fault("decode: partial scores of itself twice", "decode.h", "St[f] += X[(int(simdgroup ^ 1) * F + f) * 32];", "St[f] += X[(int(simdgroup) * F + f) * 32];", "numbers", "halves"),
]  # fmt: skip

MEANING = [
    Fault("heads of a group mixed up", "tile.h", "hkv * group + inside - position * group", "hkv + inside - position * group", "numbers"),
    Fault("KV heads by query heads", "prefill.h", "b = head / p.Hkv,", "b = head / p.Hq,", "numbers"),
    Fault("the first head of a part", "prefill.h", "part.head0 + int(group.y)", "int(group.y)", "numbers"),
    Fault("the first row tile of a part", "prefill.h", "part.row_tile0 + part.row_tiles - 1", "part.row_tiles - 1", "numbers"),
    Fault("the first key of a part", "mask.h", "int begin = part.key0 + split * part.split_keys;", "int begin = split * part.split_keys;", "numbers"),
    Fault("a wrong chunk offset", "prefill.h", "const int key = keys.begin + next * BK;\n      load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col,\n                                          keys.end - key, p.D, stage, thread_index);\n    }\n\n", "const int key = next * BK;\n      load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col,\n                                          keys.end - key, p.D, stage, thread_index);\n    }\n\n", "numbers"),
    Fault("the next block, hidden or not", "prefill.h", "const int key = keys.begin + next * BK;\n      load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col,\n                                          keys.end - key, p.D, stage, thread_index);\n    }\n\n", "const int key = keys.begin + (block + 1) * BK;\n      load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col,\n                                          keys.end - key, p.D, stage, thread_index);\n    }\n\n", "numbers"),
    Fault("sinks in every split", "prefill.h", "kSinks && part.with_sinks && split == 0", "kSinks && part.with_sinks", "numbers"),
    Fault("sinks in every chunk", "prefill.h", "kSinks && part.with_sinks && split == 0", "kSinks && split == 0", "numbers"),
    Fault("sinks in every lane's sum", "prefill.h", "if (at.col != 0) state[i].l = 0.f;", "", "numbers"),
    Fault("a carry ignored", "prefill.h", "kCarry && part.with_carry && split == 0", "kCarry && part.with_carry && split == 1", "numbers"),
    Fault("the carried sum", "softmax.h", "return {lse * log2_e(), 1.f};", "return {lse * log2_e(), 0.f};", "numbers"),
    Fault("the carried lse in base 2", "softmax.h", "return {lse * log2_e(), 1.f};", "return {lse, 1.f};", "numbers"),
    Fault("the lse in base 2", "softmax.h", "(row.m + log2(row.l)) * ln_2()", "(row.m + log2(row.l))", "numbers"),
    Fault("rows of the mask", "mask.h", "row.position * p.Ms.row", "row.position * p.Ms.col", "numbers"),
    Fault("heads of the mask", "mask.h", "row.head * p.Ms.head + ", "", "numbers"),
    Fault("a mask in base e", "mask.h", "float(((device const half*)mask)[at]) * log2_e()", "float(((device const half*)mask)[at])", "numbers"),
    Fault("a softcap after the mask", "prefill.h", "s = bias == -INFINITY ? -INFINITY : s + bias;", "s = bias == -INFINITY ? -INFINITY : score(St[i][n][e] + bias / (p.scale * log2_e()), p.scale, p.softcap);", "numbers"),
    Fault("blocks passed over by one row", "lookahead.h", "(alike ? 1 : rows) * BK", "1 * BK", "numbers"),
    Fault("keys of a block looked at beyond its end", "lookahead.h", "      if (k >= n) continue;\n", "", "out-of-bounds"),
    Fault("a step of a block not stored", "tile.h", "SDPA_FOR (i, kSteps) {\n    const int c = thread_index + i * THREADS, row = c / kChunks, col = (c - row * kChunks) * W;\n    if (kAll", "SDPA_FOR (i, kSteps - 1) {\n    const int c = thread_index + i * THREADS, row = c / kChunks, col = (c - row * kChunks) * W;\n    if (kAll", "uninitialised"),
    Fault("blocks of the flags shifted", "lookahead.h", "return simd_sum(flags[lane] << lane);", "return simd_sum(flags[lane] << (lane ^ 1));", "numbers"),
    Fault("O not rescaled", "prefill.h", "SDPA_FOR (f, KV) Ot[i][f] *= alpha;\n    }\n\n    // O += P V[j]", "{}\n    }\n\n    // O += P V[j]", "numbers"),
    Fault("decode: sinks in every split", "decode.h", "kSinks && part.with_sinks && split == 0", "kSinks && part.with_sinks", "numbers", "decode"),
    Fault("decode: a carry ignored", "decode.h", "if (with_carry && carried[r] != 0.f)", "if (false)", "numbers", "decode"),
    Fault("decode: keys of the simdgroups", "decode.h", "first += WM * BK", "first += BK", "numbers", "decode"),
    Fault("merge: the weights of 32 parts", "merge.h", "part_lses[(first + lane) * p.rows + row]", "part_lses[lane * p.rows + row]", "numbers", "merge"),
    Fault("merge: parts without keys", "merge.h", "weight == 0.f ? float4(0.f) : part * weight", "part * weight", "numbers", "merge"),
    Fault("merge: a carry ignored", "merge.h", "const bool with_carry = kCarry && p.with_carry;", "const bool with_carry = false;", "numbers", "merge"),
]  # fmt: skip

LAUNCH = [
    Fault("a wrong buffer index", "prefill.h", "lse [[buffer(kBufferLse)]]", "lse [[buffer(11)]]", "launch"),
    Fault("two arguments of one buffer", "prefill.h", "V [[buffer(kBufferV)]]", "V [[buffer(kBufferK)]]", "launch"),
    Fault("two outputs and inputs of one buffer", "prefill.h", "lse [[buffer(kBufferLse)]]", "lse [[buffer(kBufferSinks)]]", "launch"),
    Fault("a missing constant", "tile.h", "[[function_constant(kConstantWindow)]]", "[[function_constant(10)]]", "launch"),
    Fault("a constant of another type", "tile.h", "constant bool kWindow", "constant int kWindow", "launch"),
    Fault("too much threadgroup memory, asserted", "../tile_bytes.h", "{ return D + 16 / itemsize; }", "{ return D + 2048 / itemsize; }", "compiler"),
    Fault("too much threadgroup memory", "prefill.h", "SDPA_THREADGROUP(float2, Xs, kExchange);", "SDPA_THREADGROUP(float2, Xs, kExchange + 4096);", "launch"),
    Fault("too little threadgroup memory", "prefill.h", "SDPA_THREADGROUP(float2, Xs, kExchange);", "SDPA_THREADGROUP(float2, Xs, kExchange / 2);", "out-of-bounds"),
    Fault("more threads than the kernel takes", "prefill.h", "max_total_threads_per_threadgroup(32 * WM * WD)", "max_total_threads_per_threadgroup(32 * WM)", "launch"),
]  # fmt: skip

TEXT = [
    Fault("a parameter without its address space", "softmax.h", "add_sink(thread RowState& row,", "add_sink(RowState& row,", "types"),
    Fault("a helper without an address space", "tile.h", "inline void read(threadgroup const T* p, thread T* x)", "inline void read(const T* p, thread T* x)", "types"),
    Fault("a wrong address space", "mask.h", "inline float mask_value(device const uchar* mask, int64_t at)", "inline float mask_value(constant uchar* mask, int64_t at)", "types"),
    Fault("a cast to another address space", "prefill.h", "threadgroup const T* Ks = (threadgroup const T*)stage;", "device const T* Ks = (device const T*)stage;", "types"),
    Fault("a cast that drops the address space", "prefill.h", "threadgroup float2* X = Xs +", "thread float2* X = (thread float2*)Xs +", "types"),
    Fault("a write through const", "tile.h", "  if (W == 4 && n % 4 == 0) {\n    vec<T, 4> v;", "  if (W == 4 && n % 4 == 0) {\n    ((device const T*)row)[0] = T(0);\n    vec<T, 4> v;", "types"),
    Fault("a write to constant memory", "prefill.h", "  Lookahead ahead = {0, 0};", "  p.Lk = 0;\n  Lookahead ahead = {0, 0};", "types"),
    Fault("a pointer to an element of a vector", "tile.h", "  vec<T, 2> v;\n  v[0] = x;", "  vec<T, 2> v;\n  thread T* first = &v[0];\n  *first = x;", "types"),
    Fault("a throw", "merge.h", "  if (row >= p.rows) return;\n", "  if (row >= p.rows) throw 1;\n", "types", "merge"),
    Fault("a kernel's argument without an address space", "prefill.h", "    device const T* Q [[buffer(kBufferQ)]], ", "    const T* Q [[buffer(kBufferQ)]], ", "lint"),
    Fault("an argument without an index", "merge.h", "constant MergeParams& p [[buffer(kBufferMerge)]]", "constant MergeParams& p", "lint", "merge"),
    Fault("a lambda", "softmax.h", "{ return m == -INFINITY ? 0.f : m; }", "{\n  const auto f = [](float x) { return x == -INFINITY ? 0.f : x; };\n  return f(m);\n}", "lint"),
    Fault("a recursion", "lookahead.h", "    block = ahead.scanned;\n", "    return next_visible<BQ, BK, SIMDGROUPS>(ahead.scanned, ahead, p, mask, tile, flags, lane, simdgroup);\n", "lint"),
    Fault("a mutable global", "softmax.h", "constexpr float ln_2() { return 0.69314718055994531f; }", "static float ln2 = 0.69314718055994531f;\nconstexpr float ln_2() { return 0.69314718055994531f; }", "lint"),
    Fault("a static variable of a function", "tile.h", "  const int i = int(lane);\n", "  static int calls = 0;\n  ++calls;\n  const int i = int(lane);\n", "lint"),
    Fault("threadgroup memory of a helper", "lookahead.h", "  const int rows = min(BQ, p.Lq * p.group - tile.row0);\n", "  SDPA_THREADGROUP(uint, own, 32);\n  own[lane] = 0;\n  const int rows = min(BQ, p.Lq * p.group - tile.row0);\n", "lint"),
    Fault("a float stored as a bfloat", "tile.h", "if (col + i < n) row[col + i] = T(x[i]);", "if (col + i < n) row[col + i] = x[i];", "lint", "bfloat"),
    Fault("a double", "softmax.h", "  const float s = sink * log2_e(), m", "  const double exact = sink;\n  const float s = float(exact) * log2_e(), m", "lint"),
    Fault("a goto", "merge.h", "  if (row >= p.rows) return;\n", "  if (row >= p.rows) goto end;\nend:\n", "lint", "merge"),
]  # fmt: skip

FAULTS = [*BARRIERS, *SYNCHRONISATION, *EDGES, *STREAM, *LANES, *MEANING, *LAUNCH, *TEXT]


def caught(fault: Fault | None, probes: str = "") -> dict[str, str]:
    """What objects to the kernels with this fault in them: {check: what it says}."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.delenv("SOFTMETAL_COVERAGE", raising=False)  # these are not the lines that ship
        copy = Path(folder) / "kernels"
        shutil.copytree(ROOT / "kernels", copy)
        if fault:
            fault.plant(copy)
        names = (probes or fault.probes).split()
        if fault in TEXT:
            return metal_checks.text_flags(copy, names)
        return metal_checks.flags(copy, names)


def main() -> None:
    for fault in FAULTS:
        found = caught(fault)
        print(f"{fault.name:48} {fault.file:12} {', '.join(found) or 'NOT CAUGHT'}", flush=True)


if __name__ == "__main__":
    main()

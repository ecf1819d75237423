"""Mode T: Metal's address spaces, and what else its compiler refuses and C++'s does not."""

from __future__ import annotations

import re

import pytest
from emulator_kernels import HEAD

import emulator

pytestmark = pytest.mark.emulator

KERNEL = """\
kernel void f(device float* out [[buffer(0)]], constant float* in [[buffer(1)]],
              uint i [[thread_index_in_threadgroup]]) {"""

# What is before the kernel, and the kernel's body. Line 1 is the body's first.
REJECTED_BODIES = {
    "device memory as the thread's own": ("thread float* p = out;", "cannot initialize"),
    "a pointer without space": ("float* p = out;", "p points or refers to memory of no address"),
    "a pointer to a variable, without space": (
        "float x = 1;\nfloat* p = &x;",
        "p points or refers to memory of no address space",
    ),
    "a reference without space": (
        "float x = 1;\nfloat& p = x;",
        "p points or refers to memory of no address space",
    ),
    "device memory as the thread's own, by reference": (
        "thread float& p = out[0];",
        "changes address space",
    ),
    "constant memory as device memory": ("device const float* p = in;", "cannot initialize"),
    "device memory as threadgroup memory": ("threadgroup float* p = out;", "cannot initialize"),
    "a cast to another space": (
        "device float* p = (device float*)in;",
        "C-style cast .*mismatching address spaces",
    ),
    "a cast to no space": (
        "float* p = (float*)out;",
        "p points or refers to memory of no address space",
    ),
    "a cast that drops a space": ("thread float* p = (thread float*)out;", "C-style cast .*spaces"),
    "a reinterpret_cast to another space": (
        "device float* p = reinterpret_cast<device float*>(in);",
        "reinterpret_cast .*is not allowed",
    ),
    "spaces compared": ("out[0] = out == in;", "comparison of distinct pointer types"),
    "a write to constant memory": ("in[0] = 1;", "read-only variable is not assignable"),
    "a write through const device": (
        "device const float* p = out;\np[0] = 1;",
        "read-only variable is not assignable",
    ),
    "a pointer to an element of a vector": (
        "float4 v = 1;\nthread float* p = &v[1];",
        "address of vector element requested",
    ),
    "a pointer to a component of a vector": (
        "device float4* v = (device float4*)out;\ndevice float* p = &v[0].y;",
        "address of vector element requested",
    ),
    "a reference to a component of a vector": (
        "float4 v = 1;\nthread float& p = v.x;",
        "reference cannot bind to vector element",
    ),
    "a double": ("double x = 1;", "use of type 'double'"),
    "a double in an expression": ("out[0] = float(in[0] * (double)2);", "use of type 'double'"),
    "throw": ("throw 1;", "cannot use 'throw'"),
    "try": ("try { out[0] = 1; } catch (...) { }", "cannot use 'try'"),
    "new": ("thread float* p = new float(1);", "'default new' is not supported"),
    "delete": ("float x = 1;\ndelete &x;", "'default delete' is not supported"),
    "a function of the C library": ("out[0] = sinf(in[0]);", "undeclared identifier 'sinf'"),
    "printf": ('printf("%f", out[0]);', "undeclared identifier 'printf'"),
    "a half that becomes a bfloat": ("half h = 1;\nbfloat b = h;", "cannot initialize"),
}
REJECTED_HELPERS = {
    "device memory for a helper of threadgroup memory": (
        "float g(threadgroup const float* p) { return *p; }",
        "out[0] = g(out);",
        "no matching function for call to 'g'",
    ),
    "constant memory for a helper of device memory": (
        "float g(device const float* p) { return *p; }",
        "out[0] = g(in);",
        "no matching function for call to 'g'",
    ),
    "a helper's parameter without space": (
        "float g(const float* p) { return *p; }",
        "float x = 1;\nout[0] = g(&x);",
        "p points or refers to memory of no address space",
    ),
    "a helper's result without space": (
        "float* g(device float* p) { return p; }",
        "g(out)[0] = 1;",
        "g points or refers to memory of no address space",
    ),
    "a member without space": (
        "struct S { float* p; };",
        "S s;\ns.p = nullptr;",
        "p points or refers to memory of no address space",
    ),
    "a call that several overloads fit": (
        "float g(float x) { return x; }\nfloat g(half x) { return x; }",
        "out[0] = g(1);",
        "call to 'g' is ambiguous",
    ),
    "a virtual function": (
        "struct S { virtual float g() { return 1; } };",
        "S s;\nout[0] = s.g();",
        "virtual functions are not supported",
    ),
    "a pointer to a function": (
        "float g(float x) { return x; }",
        "float (*h)(float) = g;",
        "pointers to functions are not allowed",
    ),
    "a reference to a function": (
        "float g(float x) { return x; }",
        "float (&h)(float) = g;",
        "references to functions are not allowed",
    ),
    "a pointer to a member function": (
        "struct S { float g() { return 1; } };",
        "float (S::*h)() = &S::g;",
        "pointers to functions are not allowed",
    ),
    "a function of any number of arguments": (
        "float g(float x, ...) { return x; }",
        "out[0] = g(1, 2);",
        "variadic arguments are not allowed",
    ),
    "an include of C++": ("#include <vector>", "", "'vector' file not found"),
}
REJECTED = {
    **{name: ("", body, says) for name, (body, says) in REJECTED_BODIES.items()},
    **REJECTED_HELPERS,
}


def objections(before: str, body: str) -> list[str]:
    """What mode T says, in either way."""
    source = f'{HEAD}#line 1 "before"\n{before}\n{KERNEL}\n#line 1 "body"\n{body}\n}}\n'
    try:
        found = emulator.check_types(source, stock=True)
    except emulator.CompileError as error:
        return [str(error)]
    assert {diagnostic.rule for diagnostic in found} <= {"address-space"}
    return [str(diagnostic) for diagnostic in found]


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name):
    before, body, says = REJECTED[name]
    found = "\n".join(objections(before, body))
    assert re.search(says, found)
    # the line: the last one of the body or, if what is wrong is a helper's, the first one of all
    assert re.match(rf"before:1:|body:{body.count(chr(10)) + 1}:", found)


ACCEPTED = {
    "pointers of each space": (
        "",
        "float x = 1;\nthread float* p = &x;\ndevice float* q = out + i;\n"
        "threadgroup float xs[4];\nthreadgroup float* r = &xs[1];\n"
        "constant float* s = in;\n*q = *p + *r + *s;",
    ),
    "references of each space": (
        "struct P { float x[4]; };",
        "float x = 1;\nthread float& p = x;\ndevice P& q = *(device P*)out;\n"
        "constant P& s = *(constant P*)in;\nq.x[0] = p + s.x[1];",
    ),
    "casts that keep the space": (
        "",
        "device const uint4* p = (device const uint4*)out;\nout[0] = p[1].x;\n"
        "out[1] = reinterpret_cast<device half*>(out)[4];",
    ),
    "overloads by space": (
        "float g(device const float* p) { return *p; }\nfloat g(constant float* p) { return *p; }\n"
        "float g(threadgroup const float* p) { return *p; }\n"
        "float g(thread const float* p) { return *p; }",
        "float x = 1;\nthreadgroup float xs[1];\nout[0] = g(out) + g(in) + g(xs) + g(&x);",
    ),
    "a template of pointers": (
        "template <class P> float g(P p) { return p[0]; }",
        "auto p = out + 1;\nout[0] = g(in) + g(p);",
    ),
    "structs with members and pointers": (
        "template <class T, int N> struct Tile {\n  T v[N];\n  device T* out;\n"
        "  void fill(T x) thread { for (int i = 0; i < N; ++i) v[i] = x; }\n"
        "  T sum() const thread { T s = 0; for (int i = 0; i < N; ++i) s += v[i]; return s; }\n};",
        "Tile<float, 4> tile = {{}, out};\ntile.fill(2);\ntile.out[0] = tile.sum();\n"
        "Tile<float, 4> other = tile;",
    ),
    "function constants and constants of the program": (
        "constant bool kFlag [[function_constant(0)]];\n"
        "constant int kNumber [[function_constant(1)]];\n"
        "constant float kTable[2] = {1, 2};\n"
        "struct S { static constexpr constant int n = 3; };",
        "out[0] = kFlag ? kTable[kNumber] : S::n;",
    ),
    "matrices of a simdgroup": (
        "",
        "simdgroup_float8x8 a, b, c(0);\nsimdgroup_half8x8 h(1);\nsimdgroup_load(a, out);\n"
        "simdgroup_multiply_accumulate(c, a, h, c);\nc.thread_elements()[0] += 1;\n"
        "simdgroup_store(c, out);",
    ),
    "functions of simdgroups and barriers": (
        "",
        "float x = simd_shuffle_xor(simd_sum(in[i]), 1);\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);\n"
        "out[i] = fast::exp2(x) + simd_broadcast(x, 3) + as_type<float>(uint(7));",
    ),
    "vectors": (
        "",
        "float4 v = float4(in[0], 1, float2(2));\nv.xy = v.zw + v[3];\nhalf2 h = half2(v.xy);\n"
        "bfloat b = bfloat(float(h.x));\nout[0] = dot(v, float4(h, b, 1));",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    before, body = ACCEPTED[name]
    assert objections(before, body) == []


def test_kernels_that_are_templates_with_instances():
    source = (
        HEAD
        + """\
namespace one {
template <class T, int N>
[[kernel, max_total_threads_per_threadgroup(32 * N)]] void scale(
    device T* out [[buffer(0)]], constant int& n [[buffer(1)]],
    uint3 at [[thread_position_in_grid]]) {
  SOFTWARE_METAL_THREADGROUP(T, xs, N);
  for (int i = 0; i < N; ++i) xs[i] = T(n);
  out[at.x] = xs[0];
}
}
template [[host_name("a")]] [[kernel]] decltype(one::scale<float, 2>) one::scale<float, 2>;
template [[host_name("b")]] [[kernel]] decltype(one::scale<half, 4>) one::scale<half, 4>;
"""
    )
    assert emulator.check_types(source) == []
    instance = "decltype(one::scale<int*, 1>) one::scale<int*, 1>"
    found = emulator.check_types(f'{source}template [[host_name("c")]] [[kernel]] {instance};')
    assert {diagnostic.rule for diagnostic in found} == {"address-space"}

"""The lint: what C++ has and Metal does not, each in a kernel of a few lines, found in its line.

A line with something wrong names its rule in a comment; the other lines are right.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from emulator_kernels import HEAD

import emulator
from emulator.lint import FORBIDDEN

pytestmark = pytest.mark.emulator

ROOT = Path(__file__).parents[1] / "emulator"

# What is before the kernel, and the kernel's body.
CASES = {
    "a lambda": ("", "auto g = [](float x) { return x; };  // lambda\nout[i] = g(1);"),
    "a function object is none": (
        "struct G { float operator()(float x) const thread { return x; } };",
        "G g;\nout[i] = g(1);",
    ),
    "goto": ("", "goto end;  // goto\nend:\nout[i] = 1;"),
    "a computed goto": ("", "thread void* p = &&end;\ngoto *p;  // goto\nend:\nout[i] = 1;"),
    "assembly": ("", 'asm("nop");  // asm\nout[i] = 1;'),
    "new": ("", "thread float* p = new float(1);  // new\nout[i] = *p;"),
    "delete": ("", "float x = 1;\ndelete &x;  // new"),
    "throw": ("", "if (i == 1) throw 1;  // throw"),
    "try": ("", "try { out[i] = 1; } catch (...) { }  // throw"),
    "a virtual function": (
        "struct S {\n  virtual float g() { return 1; }  // virtual\n};",
        "S s;\nout[i] = s.g();",
    ),
    "a double": ("", "double x = in[0];  // double\nout[i] = float(x);"),
    "a function of a double": (
        "float g(double x) { return float(x); }  // double double",
        "out[i] = g(1);",
    ),
    "a member that is a double": ("struct S { double x; };  // double", ""),
    "a number with a point is a float": ("", "out[i] = 1.5 * in[0];"),
    "a pointer to a function": (
        "float g(float x) { return x; }",
        "float (*h)(float) = g;  // function-pointer\nout[i] = h(1);",
    ),
    "a pointer to a function, deduced": (
        "float g(float x) { return x; }",
        "auto h = g;  // function-pointer\nout[i] = h(1);",
    ),
    "a pointer to an array is none": (
        "",
        "threadgroup float xs[4][2];\nthreadgroup float (*p)[2] = xs;\np[i][0] = 1;",
    ),
    "a variable outside of all functions": ("float total = 0;  // global", "out[i] = total;"),
    "a constant outside of constant memory": (
        "constexpr float kTotal = 0;  // global",
        "out[i] = kTotal;",
    ),
    "a static member": ("struct S { static const int n = 3; };  // global", "out[i] = S::n;"),
    "constants of the program and of the function": (
        "constant float kTable[2] = {1, 2};\nconstant bool kFlag [[function_constant(%d)]];\n"
        "struct S { static constexpr constant int n = 3; };\n"
        "template <int N> constexpr constant int twice = 2 * N;",
        "constexpr int n = 2;\nout[i] = kTable[i % n] + S::n + twice<2> + kFlag;",
    ),
    "a static variable of a function": (
        "",
        "static int calls = 0;  // static-local\nout[i] = ++calls;",
    ),
    "threadgroup memory of a helper": (
        "void g(uint i) {\n  threadgroup float xs[4];  // threadgroup-variable\n  xs[i] = 1;\n}",
        "g(i);",
    ),
    "threadgroup memory of a helper, by the macro": (
        "template <class T> void g(uint i) {\n"
        "  SOFTWARE_METAL_THREADGROUP(T, xs, 4);  // threadgroup-variable\n  xs[i] = 1;\n}",
        "g<float>(i);",
    ),
    "threadgroup memory of the kernel, for a helper": (
        "void g(threadgroup float* xs, uint i) { threadgroup float* x = xs + i; *x = 1; }",
        "threadgroup float xs[4];\ng(xs, i);",
    ),
    "a float to a bfloat, in a declaration": ("", "bfloat b = in[0];  // bfloat\nout[i] = b;"),
    "a float to a bfloat, as an argument": (
        "float g(bfloat x) { return x; }",
        "out[i] = g(in[0]);  // bfloat",
    ),
    "a float to a bfloat, added": (
        "",
        "bfloat b = bfloat(1);\nb += in[0];  // bfloat\nout[i] = b;",
    ),
    "a float to a bfloat in a template": (
        "template <class T> float g(float x) {\n  T y = x;  // bfloat\n  return y;\n}",
        "out[i] = g<bfloat>(1) + g<half>(1);",
    ),
    "a bfloat that is written": ("", "bfloat b = bfloat(in[0]);\nb += b;\nout[i] = b + 1.0f;"),
    "a cast of a vector": (
        "",
        "float4 x = float4(in[0]);\nint4 n = (int4)x;  // vector-cast\nout[i] = n.x;",
    ),
    "a conversion of a vector": (
        "",
        "int4 n = int4(float4(in[0]));\nuint4 bits = as_type<uint4>(n);\nout[i] = bits.x;",
    ),
    "a recursion": (
        "int g(int n) { return n < 1 ? 0 : g(n - 1); }  // recursion",
        "out[i] = g(i);",
    ),
    "a recursion through another function": (
        "int h(int n);  // recursion\nint g(int n) { return n < 1 ? 0 : h(n - 1); }  // recursion\n"
        "int h(int n) { return g(n - 1); }\nint calls_g(int n) { return g(n); }",
        "out[i] = calls_g(i);",
    ),
    "a recursion of a template": (
        "template <class T> T g(T n) { return n < 1 ? 0 : g(n - 1); }  // recursion",
        "out[i] = g<int>(i);",
    ),
    "a recursion of a member": (
        "struct S { int g(int n) { return n < 1 ? 0 : g(n - 1); } };  // recursion",
        "S s;\nout[i] = s.g(i);",
    ),
    "a template that counts down": (
        "template <int N> int g() { return 1 + g<N - 1>(); }\ntemplate <> int g<0>() { return 0; }",
        "out[i] = g<3>();",
    ),
    "an overload that calls another": (
        "int g(int n) { return n; }\nint g(float x) { return g(int(x)); }",
        "out[i] = g(1.5f);",
    ),
}
KERNELS = {
    "a pointer without address space": (
        "[[kernel]] void %s(\n    device float* out [[buffer(0)]],\n"
        "    const float* in [[buffer(1)]]) {  // kernel-parameter\n}"
    ),
    "a reference without address space": (
        "struct P { int n; };\nkernel void %s(const P& p [[buffer(0)]]) {}  // kernel-parameter"
    ),
    "buffers without an index": (
        "[[kernel]] void %s(\n    device float* out,  // buffer-index\n"
        "    constant int& n,  // buffer-index\n    uint i [[thread_index_in_threadgroup]]) {\n}"
    ),
    "buffers without an index in two instances": (
        "template <class T> [[kernel]] void %s(\n    device T* out) {  // buffer-index\n}\n"
        'template [[host_name("one")]] [[kernel]] decltype(%q<int>) %q<int>;\n'
        'template [[host_name("two")]] [[kernel]] decltype(%q<half>) %q<half>;'
    ),
    "a kernel that is right": (
        "template <class T> [[kernel]] void %s(device T* out [[buffer(0)]],\n"
        "    constant int2& n [[buffer(1)]], uint3 at [[thread_position_in_grid]]) {}\n"
        'template [[host_name("right")]] [[kernel]] decltype(%q<int>) %q<int>;'
    ),
}
KERNEL = """\
kernel void %s(device float* out [[buffer(0)]], device const float* in [[buffer(1)]],
               uint i [[thread_index_in_threadgroup]]) {"""


def texts() -> dict[str, str]:
    """The source of each case; it is all in a namespace of its own."""
    found = {}
    for n, (name, (before, body)) in enumerate(CASES.items()):
        before = before % n if "%d" in before else before
        found[name] = "\n".join([before, KERNEL % f"f{n}", body, "}"])
    for n, (name, text) in enumerate(KERNELS.items(), len(found)):
        found[name] = text.replace("%s", f"f{n}").replace("%q", f"case_{n}::f{n}")
    return found


TEXTS = texts()


@functools.cache
def diagnostics() -> list[emulator.Diagnostic]:
    """Of all cases, which are one source: reading the headers takes most of the time."""
    parts = [
        f'namespace case_{n} {{\n#line 1 "{name}"\n{text}\n}}\n'
        for n, (name, text) in enumerate(TEXTS.items())
    ]
    return emulator.lint(HEAD + "".join(parts), stock=True)


@pytest.mark.parametrize("name", TEXTS)
def test_rules(name):
    wanted = [
        (f"{name}:{number}", rule)
        for number, line in enumerate(TEXTS[name].splitlines(), 1)
        for rule in line.partition("// ")[2].split()
    ]
    found = [(d.where, d.rule) for d in diagnostics() if d.where.rpartition(":")[0] == name]
    assert sorted(found) == sorted(wanted)


def test_every_diagnostic_is_of_a_case():
    assert {d.where.rpartition(":")[0] for d in diagnostics()} <= set(TEXTS)


def rules() -> set[str]:
    """The rules that lint.py has."""
    text = (ROOT / "lint.py").read_text()
    named = re.findall(r'diagnostic\(\s*"([\w-]+)"', text)
    return {*named, *(rule for rule, _ in FORBIDDEN.values())}


def test_every_rule_has_a_case():
    comments = [line.partition("// ")[2] for text in TEXTS.values() for line in text.splitlines()]
    assert {rule for comment in comments for rule in comment.split()} == rules()


def test_a_source_that_does_not_compile():
    with pytest.raises(emulator.CompileError, match=r"^kernel.metal:1:22: .*no_such_type"):
        emulator.lint("kernel void f(device no_such_type* x [[buffer(0)]]) {}")

// metal_math, metal_common, metal_integer, metal_relational: what kernels use of them.
//
// half and bfloat are computed in float and rounded once. Metal's own functions are allowed a few
// units in the last place; these are as exact as the C library's.
#pragma once

#include "traits.h"

namespace metal {

#define SOFTMETAL_UNARY(name, expression)                             \
  METAL_FUNC float name(float x) { return expression; }               \
  METAL_FUNC half name(half x) { return half(name(float(x))); }       \
  METAL_FUNC bfloat name(bfloat x) { return bfloat(name(float(x))); } \
  template <class T, int N>                                           \
  METAL_FUNC vec<T, N> name(vec<T, N> x) {                            \
    for (int i = 0; i < N; ++i) x[i] = name(T(x[i]));                 \
    return x;                                                         \
  }

#define SOFTMETAL_BINARY(name, expression)                                                \
  METAL_FUNC float name(float x, float y) { return expression; }                          \
  METAL_FUNC half name(half x, half y) { return half(name(float(x), float(y))); }         \
  METAL_FUNC bfloat name(bfloat x, bfloat y) { return bfloat(name(float(x), float(y))); } \
  template <class T, int N>                                                               \
  METAL_FUNC vec<T, N> name(vec<T, N> x, vec<T, N> y) {                                   \
    for (int i = 0; i < N; ++i) x[i] = name(T(x[i]), T(y[i]));                            \
    return x;                                                                             \
  }

METAL_FUNC float softmetal_exp2(float x) {
  softmetal_count_exp2();
  return __builtin_exp2f(x);
}

#define SOFTMETAL_TRANSCENDENTAL                    \
  SOFTMETAL_UNARY(exp, __builtin_expf(x))           \
  SOFTMETAL_UNARY(exp2, metal::softmetal_exp2(x))   \
  SOFTMETAL_UNARY(exp10, __builtin_powf(10.0f, x))  \
  SOFTMETAL_UNARY(log, __builtin_logf(x))           \
  SOFTMETAL_UNARY(log2, __builtin_log2f(x))         \
  SOFTMETAL_UNARY(log10, __builtin_log10f(x))       \
  SOFTMETAL_UNARY(sqrt, __builtin_sqrtf(x))         \
  SOFTMETAL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) \
  SOFTMETAL_UNARY(sin, __builtin_sinf(x))           \
  SOFTMETAL_UNARY(cos, __builtin_cosf(x))           \
  SOFTMETAL_UNARY(tan, __builtin_tanf(x))           \
  SOFTMETAL_UNARY(sinh, __builtin_sinhf(x))         \
  SOFTMETAL_UNARY(cosh, __builtin_coshf(x))         \
  SOFTMETAL_UNARY(tanh, __builtin_tanhf(x))         \
  SOFTMETAL_UNARY(atan, __builtin_atanf(x))         \
  SOFTMETAL_BINARY(atan2, __builtin_atan2f(x, y))   \
  SOFTMETAL_BINARY(pow, __builtin_powf(x, y))

SOFTMETAL_TRANSCENDENTAL
namespace fast {
SOFTMETAL_TRANSCENDENTAL
}
namespace precise {
SOFTMETAL_TRANSCENDENTAL
}

SOFTMETAL_UNARY(fabs, __builtin_fabsf(x))
SOFTMETAL_UNARY(ceil, __builtin_ceilf(x))
SOFTMETAL_UNARY(floor, __builtin_floorf(x))
SOFTMETAL_UNARY(rint, __builtin_rintf(x))
SOFTMETAL_UNARY(round, __builtin_roundf(x))
SOFTMETAL_UNARY(trunc, __builtin_truncf(x))
SOFTMETAL_UNARY(fract, x - __builtin_floorf(x))
SOFTMETAL_UNARY(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
SOFTMETAL_UNARY(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f)
SOFTMETAL_BINARY(fmin, __builtin_fminf(x, y))
SOFTMETAL_BINARY(fmax, __builtin_fmaxf(x, y))
SOFTMETAL_BINARY(fmod, __builtin_fmodf(x, y))
SOFTMETAL_BINARY(copysign, __builtin_copysignf(x, y))
#undef SOFTMETAL_TRANSCENDENTAL
#undef SOFTMETAL_UNARY
#undef SOFTMETAL_BINARY

METAL_FUNC float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
METAL_FUNC half fma(half a, half b, half c) { return half(fma(float(a), float(b), float(c))); }
METAL_FUNC bfloat fma(bfloat a, bfloat b, bfloat c) {
  return bfloat(fma(float(a), float(b), float(c)));
}
template <class T, int N>
METAL_FUNC vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; ++i) a[i] = fma(T(a[i]), T(b[i]), T(c[i]));
  return a;
}

#define SOFTMETAL_INTEGER(type)                                 \
  METAL_FUNC type min(type x, type y) { return y < x ? y : x; } \
  METAL_FUNC type max(type x, type y) { return x < y ? y : x; } \
  METAL_FUNC type clamp(type x, type low, type high) { return min(max(x, low), high); }
SOFTMETAL_INTEGER(char)
SOFTMETAL_INTEGER(uchar)
SOFTMETAL_INTEGER(short)
SOFTMETAL_INTEGER(ushort)
SOFTMETAL_INTEGER(int)
SOFTMETAL_INTEGER(uint)
SOFTMETAL_INTEGER(long)
SOFTMETAL_INTEGER(ulong)
#undef SOFTMETAL_INTEGER

// Of floats, as IEEE 754 minNum and maxNum: the operand that is no NaN.
METAL_FUNC float min(float x, float y) { return __builtin_fminf(x, y); }
METAL_FUNC float max(float x, float y) { return __builtin_fmaxf(x, y); }
METAL_FUNC half min(half x, half y) { return half(__builtin_fminf(float(x), float(y))); }
METAL_FUNC half max(half x, half y) { return half(__builtin_fmaxf(float(x), float(y))); }
METAL_FUNC bfloat min(bfloat x, bfloat y) { return bfloat(__builtin_fminf(float(x), float(y))); }
METAL_FUNC bfloat max(bfloat x, bfloat y) { return bfloat(__builtin_fmaxf(float(x), float(y))); }
METAL_FUNC float clamp(float x, float low, float high) { return min(max(x, low), high); }
METAL_FUNC half clamp(half x, half low, half high) { return min(max(x, low), high); }
METAL_FUNC bfloat clamp(bfloat x, bfloat low, bfloat high) { return min(max(x, low), high); }
template <class T, int N>
METAL_FUNC vec<T, N> min(vec<T, N> x, vec<T, N> y) {
  for (int i = 0; i < N; ++i) x[i] = min(T(x[i]), T(y[i]));
  return x;
}
template <class T, int N>
METAL_FUNC vec<T, N> max(vec<T, N> x, vec<T, N> y) {
  for (int i = 0; i < N; ++i) x[i] = max(T(x[i]), T(y[i]));
  return x;
}

template <class T, enable_if_t<is_integral_v<T>, int> = 0>
METAL_FUNC T abs(T x) {
  return x < 0 ? T(-x) : x;
}
METAL_FUNC float abs(float x) { return fabs(x); }
METAL_FUNC half abs(half x) { return fabs(x); }
METAL_FUNC bfloat abs(bfloat x) { return fabs(x); }

template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
METAL_FUNC bool isnan(T x) {
  return x != x;
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
METAL_FUNC bool isinf(T x) {
  return fabs(float(x)) == INFINITY;
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
METAL_FUNC bool isfinite(T x) {
  return fabs(float(x)) < INFINITY;
}

// c ? b : a
template <class T>
METAL_FUNC T select(T a, T b, bool c) {
  return c ? b : a;
}

METAL_FUNC uint popcount(uint x) { return __builtin_popcount(x); }
METAL_FUNC uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
METAL_FUNC uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }

template <class T, int N>
METAL_FUNC T dot(vec<T, N> x, vec<T, N> y) {
  T sum = T(x[0] * y[0]);
  for (int i = 1; i < N; ++i) sum = T(sum + x[i] * y[i]);
  return sum;
}

}  // namespace metal

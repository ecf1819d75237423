// Scalar and vector types.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned long uintptr_t;
#ifndef __OPENCL_CPP_VERSION__
typedef _Float16 half;
#endif
typedef __bf16 bfloat;
#ifndef __OPENCL_CPP_VERSION__
constexpr half operator""h(long double value) { return half(value); }
#endif

#define METAL_FUNC inline __attribute__((always_inline))

namespace metal {

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

}  // namespace metal

#define SOFTMETAL_VECTORS(type)        \
  typedef metal::vec<type, 2> type##2; \
  typedef metal::vec<type, 3> type##3; \
  typedef metal::vec<type, 4> type##4;
SOFTMETAL_VECTORS(char)
SOFTMETAL_VECTORS(uchar)
SOFTMETAL_VECTORS(short)
SOFTMETAL_VECTORS(ushort)
SOFTMETAL_VECTORS(int)
SOFTMETAL_VECTORS(uint)
SOFTMETAL_VECTORS(long)
SOFTMETAL_VECTORS(ulong)
SOFTMETAL_VECTORS(half)
SOFTMETAL_VECTORS(bfloat)
SOFTMETAL_VECTORS(float)
#undef SOFTMETAL_VECTORS

namespace softmetal {

template <class V, class T>
inline void append(thread V& v, thread int& i, T x) {
  v[i++] = x;
}
template <class V, class T, int N>
inline void append(thread V& v, thread int& i, metal::vec<T, N> x) {
  for (int j = 0; j < N; ++j) v[i++] = x[j];
}

// float4(a, b, c, d), float4(ab, c, d), float4(x), float4(half4): C++ has no such casts.
template <class T, int N>
struct Make {
  template <class... A>
  static inline metal::vec<T, N> from(A... a) {
    metal::vec<T, N> v;
    int i = 0;
    (append(v, i, a), ...);
    return v;
  }
  static inline metal::vec<T, N> from() { return metal::vec<T, N>(T(0)); }
  template <class A>
  static inline metal::vec<T, N> from(A a) {
    return metal::vec<T, N>(T(a));
  }
  template <class A>
  static inline metal::vec<T, N> from(metal::vec<A, N> a) {
    return __builtin_convertvector(a, metal::vec<T, N>);
  }
};

}  // namespace softmetal

#define char2(...) ::softmetal::Make<char, 2>::from(__VA_ARGS__)
#define char3(...) ::softmetal::Make<char, 3>::from(__VA_ARGS__)
#define char4(...) ::softmetal::Make<char, 4>::from(__VA_ARGS__)
#define uchar2(...) ::softmetal::Make<uchar, 2>::from(__VA_ARGS__)
#define uchar3(...) ::softmetal::Make<uchar, 3>::from(__VA_ARGS__)
#define uchar4(...) ::softmetal::Make<uchar, 4>::from(__VA_ARGS__)
#define short2(...) ::softmetal::Make<short, 2>::from(__VA_ARGS__)
#define short3(...) ::softmetal::Make<short, 3>::from(__VA_ARGS__)
#define short4(...) ::softmetal::Make<short, 4>::from(__VA_ARGS__)
#define ushort2(...) ::softmetal::Make<ushort, 2>::from(__VA_ARGS__)
#define ushort3(...) ::softmetal::Make<ushort, 3>::from(__VA_ARGS__)
#define ushort4(...) ::softmetal::Make<ushort, 4>::from(__VA_ARGS__)
#define int2(...) ::softmetal::Make<int, 2>::from(__VA_ARGS__)
#define int3(...) ::softmetal::Make<int, 3>::from(__VA_ARGS__)
#define int4(...) ::softmetal::Make<int, 4>::from(__VA_ARGS__)
#define uint2(...) ::softmetal::Make<uint, 2>::from(__VA_ARGS__)
#define uint3(...) ::softmetal::Make<uint, 3>::from(__VA_ARGS__)
#define uint4(...) ::softmetal::Make<uint, 4>::from(__VA_ARGS__)
#define long2(...) ::softmetal::Make<long, 2>::from(__VA_ARGS__)
#define long3(...) ::softmetal::Make<long, 3>::from(__VA_ARGS__)
#define long4(...) ::softmetal::Make<long, 4>::from(__VA_ARGS__)
#define ulong2(...) ::softmetal::Make<ulong, 2>::from(__VA_ARGS__)
#define ulong3(...) ::softmetal::Make<ulong, 3>::from(__VA_ARGS__)
#define ulong4(...) ::softmetal::Make<ulong, 4>::from(__VA_ARGS__)
#define half2(...) ::softmetal::Make<half, 2>::from(__VA_ARGS__)
#define half3(...) ::softmetal::Make<half, 3>::from(__VA_ARGS__)
#define half4(...) ::softmetal::Make<half, 4>::from(__VA_ARGS__)
#define bfloat2(...) ::softmetal::Make<bfloat, 2>::from(__VA_ARGS__)
#define bfloat3(...) ::softmetal::Make<bfloat, 3>::from(__VA_ARGS__)
#define bfloat4(...) ::softmetal::Make<bfloat, 4>::from(__VA_ARGS__)
#define float2(...) ::softmetal::Make<float, 2>::from(__VA_ARGS__)
#define float3(...) ::softmetal::Make<float, 3>::from(__VA_ARGS__)
#define float4(...) ::softmetal::Make<float, 4>::from(__VA_ARGS__)

template <class To, class From>
METAL_FUNC To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  return __builtin_bit_cast(To, value);
}

namespace metal {
using ::as_type;
}  // namespace metal

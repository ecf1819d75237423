// metal_type_traits, metal_limits: what kernels use of them.
#pragma once

#include "types.h"

#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 65504.0h
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159274101257f
#define M_LOG2E_F 1.44269502162933f
#define M_LN2_F 0.69314718246460f

namespace metal {

template <class T, T kValue>
struct integral_constant {
  static constexpr constant T value = kValue;
  typedef T value_type;
  constexpr operator T() const { return kValue; }
};
template <bool kValue>
using bool_constant = integral_constant<bool, kValue>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr constant bool is_same_v = __is_same(A, B);

template <bool kIf, class A, class B>
struct conditional {
  typedef A type;
};
template <class A, class B>
struct conditional<false, A, B> {
  typedef B type;
};
template <bool kIf, class A, class B>
using conditional_t = typename conditional<kIf, A, B>::type;

template <bool kIf, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool kIf, class T = void>
using enable_if_t = typename enable_if<kIf, T>::type;

template <class T>
using remove_cv_t = __remove_cv(T);
template <class T>
using remove_reference_t = __remove_reference_t(T);
template <class T>
struct remove_addrspace {
  typedef T type;
};
template <class T>
struct remove_addrspace<device T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<constant T> {
  typedef const T type;
};
template <class T>
struct remove_addrspace<threadgroup T> {
  typedef T type;
};
#ifdef __OPENCL_CPP_VERSION__  // else `thread` is no word of the compiler
template <class T>
struct remove_addrspace<thread T> {
  typedef T type;
};
#endif
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T>
struct is_integral : bool_constant<__is_integral(T)> {};
template <class T>
constexpr constant bool is_integral_v = __is_integral(T);
template <class T>
constexpr constant bool is_floating_point_v =
    is_same_v<T, half> || is_same_v<T, bfloat> || is_same_v<T, float>;
template <class T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};

template <class T>
struct numeric_limits;

#define SOFTMETAL_FLOAT_LIMITS(type, biggest, smallest, eps)                 \
  template <>                                                                \
  struct numeric_limits<type> {                                              \
    static constexpr type infinity() { return type(__builtin_huge_valf()); } \
    static constexpr type quiet_NaN() { return type(__builtin_nanf("")); }   \
    static constexpr type max() { return type(biggest); }                    \
    static constexpr type lowest() { return type(-biggest); }                \
    static constexpr type min() { return type(smallest); }                   \
    static constexpr type epsilon() { return type(eps); }                    \
  };
SOFTMETAL_FLOAT_LIMITS(float, 3.402823466e+38f, 1.175494351e-38f, 1.192092896e-07f)
SOFTMETAL_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 9.765625e-04f)
SOFTMETAL_FLOAT_LIMITS(bfloat, 3.389531389e+38f, 1.175494351e-38f, 7.8125e-03f)
#undef SOFTMETAL_FLOAT_LIMITS

#define SOFTMETAL_INTEGER_LIMITS(type, smallest, biggest) \
  template <>                                             \
  struct numeric_limits<type> {                           \
    static constexpr type max() { return biggest; }       \
    static constexpr type min() { return smallest; }      \
    static constexpr type lowest() { return smallest; }   \
  };
SOFTMETAL_INTEGER_LIMITS(char, -128, 127)
SOFTMETAL_INTEGER_LIMITS(signed char, -128, 127)
SOFTMETAL_INTEGER_LIMITS(uchar, 0, 255)
SOFTMETAL_INTEGER_LIMITS(short, -32768, 32767)
SOFTMETAL_INTEGER_LIMITS(ushort, 0, 65535)
SOFTMETAL_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647)
SOFTMETAL_INTEGER_LIMITS(uint, 0, 4294967295u)
SOFTMETAL_INTEGER_LIMITS(long, -9223372036854775807 - 1, 9223372036854775807)
SOFTMETAL_INTEGER_LIMITS(ulong, 0, 18446744073709551615ul)
#undef SOFTMETAL_INTEGER_LIMITS

}  // namespace metal

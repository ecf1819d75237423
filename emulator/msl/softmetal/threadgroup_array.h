// Threadgroup memory comes from the runtime, which poisons it and knows its bounds.
#pragma once

#include "types.h"

namespace softmetal {

// The size of the smallest part that a kernel may write by itself.
template <class T>
struct Element {
  static constexpr unsigned kBytes = alignof(T) < 8 ? alignof(T) : 8;
};
template <class T, int N>
struct Element<T __attribute__((ext_vector_type(N)))> {
  static constexpr unsigned kBytes = sizeof(T);
};

template <class T, size_t N>
struct Element<T[N]> : Element<T> {};

// `A` is an array type.
template <class A>
METAL_FUNC threadgroup A* threadgroup_object(unsigned key) {
  return (threadgroup A*)softmetal_threadgroup_array(key, sizeof(A), alignof(A), Element<A>::kBytes,
                                                     SOFTMETAL_SITE);
}

}  // namespace softmetal

// In the place of `threadgroup type name[count];`
#define SOFTWARE_METAL_THREADGROUP(type, name, count) \
  threadgroup auto& name = *::softmetal::threadgroup_object<type[count]>(__COUNTER__)

// How the runtime calls a kernel: an argument for each parameter, by what its attribute says.
#pragma once

#include "checks.h"

namespace softmetal {

template <u32... I>
struct Indices {};
template <u32 N, u32... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <u32... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <class T>
struct IsWritable {
  static constexpr bool value = false;
};
template <class T>
struct IsWritable<__attribute__((address_space(1))) T*> {
  static constexpr bool value = !__is_const(T);
};
template <class T>
struct IsWritable<__attribute__((address_space(1))) T&>
    : IsWritable<__attribute__((address_space(1))) T*> {};

// Whether a pointer or a reference is to device or constant memory.
template <class T>
struct HasSpace {
  static constexpr bool value = false;
};
template <class T>
struct HasSpace<__attribute__((address_space(1))) T*> {
  static constexpr bool value = true;
};
template <class T>
struct HasSpace<__attribute__((address_space(2))) T*> {
  static constexpr bool value = true;
};
template <class T>
struct HasSpace<T&> : HasSpace<T*> {};

// Buffers: a pointer or a reference with an address space.
template <class P>
struct Argument {
  static constexpr bool is_buffer = false;
  static P make(const Parameter&, const u32* value) { return static_cast<P>(value[0]); }
};
template <class T>
struct Argument<T*> {
  static constexpr bool is_buffer = true;
  static T* make(const Parameter& p, const u32*) {
    return reinterpret_cast<T*>(p.used ? softmetal_context->buffers[p.index] : 0);
  }
};
template <class T>
struct Argument<T&> {
  static constexpr bool is_buffer = true;
  static T& make(const Parameter& p, const u32* value) { return *Argument<T*>::make(p, value); }
};
template <class T, int N>
struct Argument<T __attribute__((ext_vector_type(N)))> {
  static constexpr bool is_buffer = false;
  static T __attribute__((ext_vector_type(N))) make(const Parameter&, const u32* value) {
    T __attribute__((ext_vector_type(N))) v;
    for (int i = 0; i < N; ++i) v[i] = static_cast<T>(value[i]);
    return v;
  }
};

inline void attribute_value(Source source, u32* out) {
  const Context& c = *softmetal_context;
  const Thread& t = *c.thread;
  for (int i = 0; i < 3; ++i) {
    switch (source) {
      case Source::GroupPosition:
        out[i] = c.group[i];
        break;
      case Source::GroupsPerGrid:
        out[i] = c.groups[i];
        break;
      case Source::ThreadPositionInGroup:
        out[i] = t.position[i];
        break;
      case Source::ThreadPositionInGrid:
        out[i] = c.group[i] * c.threads_per_group[i] + t.position[i];
        break;
      case Source::ThreadsPerGroup:
        out[i] = c.threads_per_group[i];
        break;
      case Source::ThreadsPerGrid:
        out[i] = c.groups[i] * c.threads_per_group[i];
        break;
      case Source::ThreadIndexInGroup:
        out[i] = t.index;
        break;
      case Source::Lane:
        out[i] = t.lane;
        break;
      case Source::Simdgroup:
        out[i] = t.simdgroup;
        break;
      case Source::LanesPerSimdgroup:
        out[i] = 32;
        break;
      case Source::SimdgroupsPerGroup:
        out[i] = c.simdgroups;
        break;
      case Source::Buffer:
        out[i] = 0;
        break;
    }
  }
}

template <class P>
P argument(const Parameter& parameter) {
  u32 value[3];
  attribute_value(parameter.source, value);
  return Argument<P>::make(parameter, value);
}

template <class... P, u32... I>
void call(void (*kernel)(P...), const Parameter* parameters, Indices<I...>) {
  kernel(argument<P>(parameters[I])...);
}

template <class... P>
constexpr bool have_spaces(void (*)(P...)) {
  return ((HasSpace<P>::value || !Argument<P>::is_buffer) && ...);
}

template <class... P>
constexpr u32 parameter_count(void (*)(P...)) {
  return sizeof...(P);
}

// Completes what the attributes say with what the types say.
template <class... P>
void add_types(void (*)(P...), Parameter* out) {
  const bool writable[] = {IsWritable<P>::value..., false};
  for (u32 i = 0; i < sizeof...(P); ++i) out[i].writable = writable[i];
}

// Whether each parameter that is a buffer, and no other, is a pointer or a reference.
template <class... P>
constexpr bool kinds_match(void (*)(P...), const Source* sources) {
  const bool is_buffer[] = {Argument<P>::is_buffer..., false};
  for (u32 i = 0; i < sizeof...(P); ++i) {
    if (is_buffer[i] != (sources[i] == Source::Buffer)) return false;
  }
  return true;
}

// `Bindings` is generated from the text of the kernel's signature (emulator/rewrite.py).
template <class F, F* kernel, class Bindings>
struct Entry {
  static constexpr u32 kCount = Bindings::kCount;
  static_assert(parameter_count(static_cast<F*>(nullptr)) == kCount,
                "the kernel's signature was not understood");
  static_assert(kinds_match(static_cast<F*>(nullptr), Bindings::kSources),
                "[[buffer(n)]] goes with a pointer or a reference, other attributes with values");
#ifndef SOFTMETAL_LINT  // which says it with the line of the parameter
  static_assert(have_spaces(static_cast<F*>(nullptr)),
                "a buffer is in device or constant memory: its parameter says which");
#endif
  static u32 parameters(Parameter* out) {
    if (out) {
      Bindings::fill(out);
      add_types(kernel, out);
    }
    return kCount;
  }
  static void run() {
    Parameter all[kCount + 1];
    Bindings::fill(all);
    call(kernel, all, typename MakeIndices<kCount>::type{});
  }
};

}  // namespace softmetal

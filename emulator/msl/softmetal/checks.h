// Every load and store of device, constant and threadgroup memory goes through these functions: the
// compiler's intermediate code is made to call them (emulator/instrument.py). Each checks one access
// and returns the real address. The paths here are the common ones; softmetal_access, in the runtime,
// takes the others, and is the one to decide what is a finding.
//
// preserve_all: a check is a leaf that needs a few integer registers, so its caller keeps its vector
// registers over the call.
#pragma once

#include "abi.h"
#include "ordering.h"

extern "C" {
extern __thread softmetal::Context* softmetal_context __attribute__((tls_model("initial-exec")));
char* softmetal_access(softmetal::u64 address, softmetal::u32 bytes, softmetal::u32 align,
                       softmetal::Access access, softmetal::u32 site);
void softmetal_copy(softmetal::u64 to, softmetal::u64 from, softmetal::u64 bytes,
                    softmetal::u32 aligns, softmetal::u32 site);
void softmetal_fill(softmetal::u64 to, softmetal::u8 value, softmetal::u64 bytes,
                    softmetal::u32 site);
}

#define SOFTMETAL_CHECK __attribute__((preserve_all, noinline))
#define SOFTMETAL_INLINE inline __attribute__((always_inline))

namespace softmetal {

SOFTMETAL_CHECK inline char* slow(u64 address, u32 bytes, u32 align, Access access, u32 site) {
  return softmetal_access(address, bytes, align, access, site);
}

SOFTMETAL_INLINE bool inside(u64 offset, u64 bytes, u64 limit) {
  return static_cast<long long>(offset | (limit - bytes - offset)) >= 0;
}

// Constants at file scope lie where the loader put them.
SOFTMETAL_INLINE bool is_table(u64 address) {
  return address >> kTagShift == 0 && address >> 16 != 0;
}

template <u32 kBytes, Access kAccess>
SOFTMETAL_INLINE char* device_access(u64 address, u32 align, u32 site) {
  Context& context = *softmetal_context;
  const Region& region = context.regions[address >> kTagShift];
  const u64 offset = address - region.start;
  if (__builtin_expect(
          !inside(offset, kBytes, region.bytes) || (address & (align - 1)) || region.tracked,
          false)) {
    return slow(address, kBytes, align, kAccess, site);
  }
  (kAccess == Access::DeviceLoad ? context.counts.device_read_bytes
                                 : context.counts.constant_read_bytes) += kBytes;
  return region.data + offset;
}

template <u32 kBytes, bool kStore>
SOFTMETAL_INLINE char* threadgroup_access(u64 address, u32 align, u32 site) {
  constexpr Access kAccess = kStore ? Access::Store : Access::Load;
  Context& context = *softmetal_context;
  const Region& region = context.regions[address >> kTagShift];
  const u64 offset = address - region.start;
  const u32 count = kBytes >> region.element_shift;
  if (__builtin_expect(!inside(offset, kBytes, region.bytes) || (address & (align - 1)) ||
                           ((offset | kBytes) & region.inner) || region.cells == nullptr,
                       false)) {
    return slow(address, kBytes, align, kAccess, site);
  }
  Cell* cells = region.cells + (offset >> region.element_shift);
  const Order order = context.order;
  for (u32 i = 0; i < count; ++i) {
    const Cell cell = cells[i];
    if (__builtin_expect(unordered(cell.writer, order) ||
                             (kStore ? unordered(cell.reader, order) : cell.writer == 0),
                         false)) {
      return slow(address, kBytes, align, kAccess, site);
    }
    cells[i] = kStore ? Cell{order.stamp, 0} : Cell{cell.writer, with_reader(cell.reader, order)};
  }
  (kStore ? context.counts.threadgroup_write_bytes : context.counts.threadgroup_read_bytes) +=
      kBytes;
  return region.data + offset;
}

}  // namespace softmetal

#define SOFTMETAL_DEFINE_CHECKS(bytes)                                                             \
  extern "C" SOFTMETAL_CHECK __attribute__((used)) inline char* softmetal_device_load_##bytes(     \
      softmetal::u64 address, softmetal::u32 align, softmetal::u32 site) {                         \
    return softmetal::device_access<bytes, softmetal::Access::DeviceLoad>(address, align, site);   \
  }                                                                                                \
  extern "C" SOFTMETAL_CHECK __attribute__((used)) inline char* softmetal_device_store_##bytes(    \
      softmetal::u64 address, softmetal::u32 align, softmetal::u32 site) {                         \
    return softmetal::slow(address, bytes, align, softmetal::Access::DeviceStore, site);           \
  }                                                                                                \
  extern "C" SOFTMETAL_CHECK __attribute__((used)) inline char* softmetal_constant_load_##bytes(   \
      softmetal::u64 address, softmetal::u32 align, softmetal::u32 site) {                         \
    if (softmetal::is_table(address)) return reinterpret_cast<char*>(address);                     \
    return softmetal::device_access<bytes, softmetal::Access::ConstantLoad>(address, align, site); \
  }                                                                                                \
  extern "C" SOFTMETAL_CHECK __attribute__((used)) inline char* softmetal_constant_store_##bytes(  \
      softmetal::u64 address, softmetal::u32 align, softmetal::u32 site) {                         \
    return softmetal::slow(address, bytes, align, softmetal::Access::ConstantStore, site);         \
  }                                                                                                \
  extern "C" SOFTMETAL_CHECK __attribute__((used)) inline char*                                    \
  softmetal_threadgroup_load_##bytes(softmetal::u64 address, softmetal::u32 align,                 \
                                     softmetal::u32 site) {                                        \
    return softmetal::threadgroup_access<bytes, false>(address, align, site);                      \
  }                                                                                                \
  extern "C" SOFTMETAL_CHECK __attribute__((used)) inline char*                                    \
  softmetal_threadgroup_store_##bytes(softmetal::u64 address, softmetal::u32 align,                \
                                      softmetal::u32 site) {                                       \
    return softmetal::threadgroup_access<bytes, true>(address, align, site);                       \
  }

SOFTMETAL_DEFINE_CHECKS(1)
SOFTMETAL_DEFINE_CHECKS(2)
SOFTMETAL_DEFINE_CHECKS(4)
SOFTMETAL_DEFINE_CHECKS(8)
SOFTMETAL_DEFINE_CHECKS(16)
SOFTMETAL_DEFINE_CHECKS(32)
SOFTMETAL_DEFINE_CHECKS(64)
#undef SOFTMETAL_DEFINE_CHECKS
#undef SOFTMETAL_INLINE
#undef SOFTMETAL_CHECK

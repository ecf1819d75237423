// When two accesses are a race, by their stamps. Shared by the checks in kernels and the runtime.
#pragma once

#include "abi.h"

namespace softmetal {

__attribute__((always_inline)) inline u32 simdgroup_of(u32 stamp) {
  const u32 thread = stamp & kThreadMask;
  return thread < kSeveralOfSimdgroup ? thread / 32 : thread - kSeveralOfSimdgroup;
}

// An access with this stamp is neither the running thread's own nor before a barrier that orders it.
__attribute__((always_inline)) inline bool unordered(u32 stamp, const Order& now) {
  if (stamp < now.epoch || !((stamp ^ now.stamp) & kThreadMask)) return false;
  return stamp >= now.simdgroup_epoch || simdgroup_of(stamp) != simdgroup_of(now.stamp);
}

// What to remember after the running thread reads what `reader` has read: enough to see a later write
// as a race. An unordered reader is kept as "several"; one that is ordered before this simdgroup may
// be forgotten, because whoever is not ordered after it is not ordered after this thread either.
__attribute__((always_inline)) inline u32 with_reader(u32 reader, const Order& now) {
  if (!unordered(reader, now)) return now.stamp;
  if ((reader & kThreadMask) == kSeveral) return reader;
  const u32 simdgroup = simdgroup_of(now.stamp);
  const u32 several =
      simdgroup_of(reader) == simdgroup ? kSeveralOfSimdgroup + simdgroup : kSeveral;
  return (now.stamp & ~kThreadMask) | several;
}

}  // namespace softmetal

// The functions that kernels call (msl/softmetal/runtime.h).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "executor.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SOFTMETAL_VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define SOFTMETAL_VECTORISED
#endif
#define SOFTMETAL_KERNEL_API extern "C" __attribute__((visibility("default")))

namespace softmetal {

namespace {

// Row and first column of a lane's two elements of an 8x8 matrix.
u32 row_of(u32 lane) { return (lane >> 4 & 1) * 4 + (lane >> 1 & 3); }
u32 column_of(u32 lane) { return (lane >> 3 & 1) * 4 + (lane & 1) * 2; }

u32 shuffle_source(Shuffle kind, u32 lane, u32 by) {
  switch (kind) {
    case Shuffle::Lane:
    case Shuffle::Broadcast:
      return by;
    case Shuffle::Xor:
      return lane ^ by;
    case Shuffle::Up:
      return lane < by ? lane : lane - by;
    case Shuffle::Down:
      return lane + by >= 32 ? lane : lane + by;
    case Shuffle::RotateUp:
      return (lane - by) & 31;
    case Shuffle::RotateDown:
      return (lane + by) & 31;
    case Shuffle::BroadcastFirst:
      return 0;
  }
  return lane;
}

float combine(float a, float b, Reduction kind) {
  switch (kind) {
    case Reduction::Sum:
      return a + b;
    case Reduction::Product:
      return a * b;
    case Reduction::Max:
      return std::fmax(a, b);
    default:
      return std::fmin(a, b);
  }
}

long long combine(long long a, long long b, Reduction kind, bool is_unsigned) {
  const auto ua = static_cast<u64>(a), ub = static_cast<u64>(b);
  switch (kind) {
    case Reduction::Sum:
      return static_cast<long long>(ua + ub);
    case Reduction::Product:
      return static_cast<long long>(ua * ub);
    case Reduction::Max:
      return (is_unsigned ? ua < ub : a < b) ? b : a;
    case Reduction::Min:
      return (is_unsigned ? ub < ua : b < a) ? b : a;
    case Reduction::And:
      return a & b;
    case Reduction::Or:
      return a | b;
    case Reduction::Xor:
      return a ^ b;
    case Reduction::All:
      return a && b;
    case Reduction::Any:
      return a || b;
  }
  return a;
}

// In pairs, then pairs of pairs, as hardware does; one result for all lanes.
template <class T, class Combine>
void reduce_lanes(Executor& e, Simdgroup& group, Combine combine) {
  T values[kLanes];
  int n = 0;
  for (u32 bits = group.live; bits; bits &= bits - 1) {
    std::memcpy(&values[n++], &e.lane(group, static_cast<u32>(__builtin_ctz(bits))).value,
                sizeof(T));
  }
  while (n > 1) {
    const int half = (n + 1) / 2;
    for (int i = 0; i + half < n; ++i) values[i] = combine(values[i], values[i + half]);
    n = half;
  }
  for (u32 bits = group.live; bits; bits &= bits - 1) {
    std::memcpy(&e.lane(group, static_cast<u32>(__builtin_ctz(bits))).value, &values[0], sizeof(T));
  }
}

template <class T>
void scan_lanes(Executor& e, Simdgroup& group, bool inclusive) {
  T sum = 0;
  for (u32 bits = group.live; bits; bits &= bits - 1) {
    u64& value = e.lane(group, static_cast<u32>(__builtin_ctz(bits))).value;
    T mine;
    std::memcpy(&mine, &value, sizeof(T));
    const T before = sum;
    sum += mine;
    std::memcpy(&value, inclusive ? &sum : &before, sizeof(T));
  }
}

typedef float Row __attribute__((vector_size(32)));

// Not fused: the same sums on every machine.
SOFTMETAL_VECTORISED void multiply_matrices(Simdgroup& group) {
  Row b[8];
  std::memcpy(b, group.b, sizeof(b));
  for (int row = 0; row < 8; ++row) {
    Row sum;
    std::memcpy(&sum, group.c[row], sizeof(sum));
    for (int k = 0; k < 8; ++k) sum += group.a[row][k] * b[k];
    std::memcpy(group.d[row], &sum, sizeof(sum));
  }
}

}  // namespace

SOFTMETAL_KERNEL_API void softmetal_threadgroup_barrier(u32 flags, u32 site) {
  current_executor->threadgroup_barrier(flags, site);
}

SOFTMETAL_KERNEL_API void softmetal_simdgroup_barrier(u32 flags, u32 site) {
  Executor& e = *current_executor;
  e.meet(Meeting::SimdgroupBarrier, site,
         [&](Simdgroup& group) { e.order_simdgroup(group, flags); });
}

SOFTMETAL_KERNEL_API void softmetal_together(u32 site) {
  current_executor->meet(Meeting::Matrix, site, [](Simdgroup&) {});
}

SOFTMETAL_KERNEL_API u64 softmetal_shuffle(u64 value, u32 by, Shuffle kind, u32 site) {
  Executor& e = *current_executor;
  Lane& me = e.lane();
  me.value = value;
  me.by = by;
  e.meet(Meeting::Shuffle, site, [&](Simdgroup& group) {
    ++e.context.counts.shuffles;
    u64 values[kLanes];
    const u32 first = static_cast<u32>(__builtin_ctz(group.live));
    const u32 common = e.lane(group, first).by;
    for (u32 i = 0; i < kLanes; ++i) values[i] = e.lane(group, i).value;
    for (u32 bits = group.live; bits; bits &= bits - 1) {
      const u32 i = static_cast<u32>(__builtin_ctz(bits));
      Lane& lane = e.lane(group, i);
      const u32 from = shuffle_source(kind, i, lane.by);
      if (from >= kLanes || !(group.live >> from & 1)) {
        e.find("bad-lane", site,
               "lane " + std::to_string(i) + " takes the value of lane " + std::to_string(from) +
                   ", which is not there",
               lane.thread, e.context.group);
        lane.value = ~u64{0};
        continue;
      }
      if (kind == Shuffle::Broadcast && lane.by != common) {
        e.find("bad-lane", site,
               "simd_broadcast of lane " + std::to_string(common) + " and of lane " +
                   std::to_string(lane.by) + " in one call",
               lane.thread, e.context.group);
      }
      lane.value = values[from];
    }
  });
  return me.value;
}

SOFTMETAL_KERNEL_API float softmetal_reduce_float(float value, Reduction kind, u32 site) {
  Executor& e = *current_executor;
  Lane& me = e.lane();
  std::memcpy(&me.value, &value, sizeof(value));
  e.meet(Meeting::Reduction, site, [&](Simdgroup& group) {
    ++e.context.counts.reductions;
    reduce_lanes<float>(e, group, [&](float a, float b) { return combine(a, b, kind); });
  });
  std::memcpy(&value, &me.value, sizeof(value));
  return value;
}

SOFTMETAL_KERNEL_API long long softmetal_reduce_integer(long long value, Reduction kind,
                                                        u32 is_unsigned, u32 site) {
  Executor& e = *current_executor;
  Lane& me = e.lane();
  me.value = static_cast<u64>(value);
  e.meet(Meeting::Reduction, site, [&](Simdgroup& group) {
    ++e.context.counts.reductions;
    reduce_lanes<long long>(
        e, group, [&](long long a, long long b) { return combine(a, b, kind, is_unsigned != 0); });
  });
  return static_cast<long long>(me.value);
}

SOFTMETAL_KERNEL_API float softmetal_scan_float(float value, u32 inclusive, u32 site) {
  Executor& e = *current_executor;
  Lane& me = e.lane();
  std::memcpy(&me.value, &value, sizeof(value));
  e.meet(Meeting::Scan, site, [&](Simdgroup& group) {
    ++e.context.counts.reductions;
    scan_lanes<float>(e, group, inclusive != 0);
  });
  std::memcpy(&value, &me.value, sizeof(value));
  return value;
}

SOFTMETAL_KERNEL_API long long softmetal_scan_integer(long long value, u32 inclusive, u32 site) {
  Executor& e = *current_executor;
  Lane& me = e.lane();
  me.value = static_cast<u64>(value);
  e.meet(Meeting::Scan, site, [&](Simdgroup& group) {
    ++e.context.counts.reductions;
    scan_lanes<u64>(e, group, inclusive != 0);
  });
  return static_cast<long long>(me.value);
}

SOFTMETAL_KERNEL_API u32 softmetal_ballot(u32 value, u32 site) {
  Executor& e = *current_executor;
  Lane& me = e.lane();
  me.value = value != 0;
  e.meet(Meeting::Ballot, site, [&](Simdgroup& group) {
    ++e.context.counts.reductions;
    u32 votes = 0;
    for (u32 bits = group.live; bits; bits &= bits - 1) {
      const u32 i = static_cast<u32>(__builtin_ctz(bits));
      votes |= static_cast<u32>(e.lane(group, i).value) << i;
    }
    for (u32 bits = group.live; bits; bits &= bits - 1) {
      e.lane(group, static_cast<u32>(__builtin_ctz(bits))).value = votes;
    }
  });
  return static_cast<u32>(me.value);
}

SOFTMETAL_KERNEL_API Pair softmetal_multiply(float a0, float a1, float b0, float b1, float c0,
                                             float c1, u32 site) {
  Executor& e = *current_executor;
  Simdgroup& group = e.simdgroup();
  const u32 lane = e.lane().thread.lane, row = row_of(lane), column = column_of(lane);
  group.a[row][column] = a0, group.a[row][column + 1] = a1;
  group.b[row][column] = b0, group.b[row][column + 1] = b1;
  group.c[row][column] = c0, group.c[row][column + 1] = c1;
  e.meet(Meeting::Multiply, site, [&](Simdgroup& g) {
    ++e.context.counts.multiplies;
    if (g.exists != ~0u) {
      e.find("divergent", site, "a simdgroup_matrix needs 32 lanes");
    }
    multiply_matrices(g);
  });
  return {group.d[row][column], group.d[row][column + 1]};
}

SOFTMETAL_KERNEL_API u64 softmetal_threadgroup_array(u32 key, u64 bytes, u32 align, u32 element,
                                                     u32) {
  return current_executor->threadgroup_array(key, bytes, align, element);
}

SOFTMETAL_KERNEL_API char* softmetal_access(u64 address, u32 bytes, u32 align, Access access,
                                            u32 site) {
  return current_executor->access(address, bytes, align, access, site);
}

// The region tells the space; a copy does not.
static char* touch(u64 address, u32 bytes, u32 align, bool store, u32 site) {
  if (address >> kTagShift == 0) return reinterpret_cast<char*>(address);
  const bool threadgroup = address >> kTagShift >= static_cast<u64>(kFirstThreadgroupRegion);
  const Access access = threadgroup ? (store ? Access::Store : Access::Load)
                                    : (store ? Access::DeviceStore : Access::DeviceLoad);
  return current_executor->access(address, bytes, align, access, site);
}

SOFTMETAL_KERNEL_API void softmetal_copy(u64 to, u64 from, u64 bytes, u32 aligns, u32 site) {
  if (bytes == 0) return;
  const u32 n = static_cast<u32>(bytes);
  const std::string value(touch(from, n, aligns >> 16, false, site), n);
  std::memcpy(touch(to, n, aligns & 0xffff, true, site), value.data(), n);
}

SOFTMETAL_KERNEL_API void softmetal_fill(u64 to, u8 value, u64 bytes, u32 site) {
  if (bytes) std::memset(touch(to, static_cast<u32>(bytes), 1, true, site), value, bytes);
}

}  // namespace softmetal

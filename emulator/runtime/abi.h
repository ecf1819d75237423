// What compiled kernels and the runtime share. Both compilers read it, so it includes nothing.
//
// Kernels never hold real addresses of device or threadgroup memory. They hold tagged ones:
//     bits 63..56   region: which buffer or threadgroup array
//     bits 55..0    kBias + offset in bytes (+ what the buffer's own offset leaves of alignment)
// and every load and store asks the region for the real address (msl/softmetal/checks.h). So an
// access outside a buffer is seen as such, whatever lies beside it, and never touches that memory.
#pragma once

#include "operations.h"

namespace softmetal {

inline constexpr int kRegions = 256;
inline constexpr int kFirstDeviceRegion = 1;        // region of buffer i: 1 + i
inline constexpr int kFirstThreadgroupRegion = 64;  // of threadgroup array i: 64 + i
inline constexpr int kMaxThreadgroupArrays = 64;
inline constexpr int kTagShift = 56;
inline constexpr u64 kBias = 1ull << 47;

// When and by whom: clock << kThreadBits | thread. The clock of a threadgroup counts the barriers
// that order its memory, and starts at 1: stamp 0 is "never".
inline constexpr int kThreadBits = 11;
inline constexpr u32 kThreadMask = (1u << kThreadBits) - 1;
inline constexpr u32 kSeveralOfSimdgroup = 1024;  // + simdgroup, in the place of a reading thread
inline constexpr u32 kSeveral = kThreadMask;      // of several simdgroups

// What a thread's accesses are ordered after.
struct Order {
  u32 stamp;            // of the running thread, now
  u32 epoch;            // what is stamped below this is ordered before every thread
  u32 simdgroup_epoch;  // and below this, if of the running simdgroup, before that simdgroup
};

// Who touched an element of threadgroup memory last.
struct Cell {
  u32 writer, reader;  // stamps
};

struct alignas(64) Region {
  u64 start;    // tagged address of offset 0
  u64 bytes;    // 0: nothing is there
  char* data;   // real address of offset 0
  Cell* cells;  // threadgroup memory: one per element of 1 << element_shift bytes
  u32 element_shift;
  u32 inner;    // (1 << element_shift) - 1
  u32 tracked;  // device memory: every access is handed to the runtime
};

struct Counts {
  u64 device_read_bytes, device_write_bytes, constant_read_bytes;
  u64 threadgroup_read_bytes, threadgroup_write_bytes;
  u64 exp2;
  u64 multiplies, shuffles, reductions;
  u64 threadgroup_barriers, simdgroup_barriers;
};

// One thread of the kernel, as far as the kernel may ask.
struct Thread {
  u32 position[3];  // in the threadgroup
  u32 index;        // in the threadgroup
  u32 lane, simdgroup;
};

// What one OS thread runs at the moment.
struct Context {
  Counts counts;
  Order order;  // of threadgroup memory
  const Thread* thread;
  u32 group[3];   // threadgroup_position_in_grid
  u32 groups[3];  // threadgroups_per_grid
  u32 threads_per_group[3];
  u32 simdgroups;
  u64 buffers[31];  // tagged addresses
  Region regions[kRegions];
};

// Where a parameter of a kernel comes from.
enum class Source : u32 {
  Buffer,
  GroupPosition,
  GroupsPerGrid,
  ThreadPositionInGroup,
  ThreadPositionInGrid,
  ThreadsPerGroup,
  ThreadsPerGrid,
  ThreadIndexInGroup,
  Lane,
  Simdgroup,
  LanesPerSimdgroup,
  SimdgroupsPerGroup,
};

struct Parameter {
  Source source;
  u32 index;      // of a buffer
  bool used;      // false: [[function_constant(c)]] with c false; passed as null
  bool writable;  // device memory that is not const
  const char* name;
};

// Exported by a library, for each kernel in it.
struct KernelEntry {
  const char* name;                   // host name
  void (*run)();                      // as the running thread of softmetal_context
  u32 (*parameters)(Parameter* out);  // fills out (if not null), returns how many there are
  u32 max_threads;                    // [[max_total_threads_per_threadgroup]], or 1024
};

struct ConstantEntry {
  const char* name;
  u32 index, bytes;
  void* value;
};

struct SiteEntry {  // where an access or a call is written
  const char* file;
  u32 line, unused;
};

struct CoverageEntry {  // a line of a basic block
  const char* file;
  u32 line, block;
};

// softmetal_library() of a library.
struct LibraryEntry {
  const KernelEntry* kernels;
  u32 kernel_count;
  const ConstantEntry* constants;
  u32 constant_count;
  const SiteEntry* sites;
  u32 site_count;
  const CoverageEntry* coverage;
  u32 coverage_count;
  const u8* covered;  // by block
};

enum class Access : u32 { DeviceLoad, DeviceStore, ConstantLoad, ConstantStore, Load, Store };

}  // namespace softmetal

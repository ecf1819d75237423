// Runs threadgroups of one kernel on one OS thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "device_memory.h"
#include "fiber.h"
#include "findings.h"
#include "ordering.h"

namespace softmetal {

inline constexpr int kLanes = 32;
inline constexpr int kSimdgroups = kMaxThreads / kLanes;

// What a thread waits in. Threads that meet must wait in the same, at the same place.
enum class Meeting : u32 {
  None,
  ThreadgroupBarrier,
  SimdgroupBarrier,
  Shuffle,
  Reduction,
  Scan,
  Ballot,
  Multiply,
  Matrix,  // simdgroup_load, simdgroup_store
};

struct alignas(64) Lane {
  Fiber fiber;
  Thread thread{};
  Meeting meeting = Meeting::None;
  u32 site = 0;
  // What it brings to a meeting, and takes from it.
  u64 value = 0;
  u32 by = 0;
};

struct Simdgroup {
  u32 first = 0;         // lane 0 as an index of the threadgroup
  u32 exists = 0;        // bits of lanes
  u32 live = 0;          // that have not returned
  u32 runnable = 0;      // that wait for nothing
  u32 epoch = 0;         // Order::simdgroup_epoch of threadgroup memory
  u32 device_epoch = 0;  // and of device memory
  alignas(64) float a[8][8], b[8][8], c[8][8], d[8][8];
};

class Kernel;

class Executor {
 public:
  Executor();

  // Throws std::invalid_argument if the kernel takes too much threadgroup memory.
  void run(const Kernel& kernel, Size grid, Size group, const std::map<int, Buffer>& buffers,
           Counters& counters, std::vector<Finding>& findings);

  // Waits for the other lanes of the simdgroup. The last one to come calls perform(simdgroup).
  template <class Perform>
  void meet(Meeting meeting, u32 site, Perform perform) {
    Simdgroup& group = *simdgroup_;
    if (arrive(group, meeting, site)) return;
    perform(group);
    group.runnable = group.live;
  }

  Lane& lane() { return *lane_; }
  Simdgroup& simdgroup() { return *simdgroup_; }
  Lane& lane(const Simdgroup& group, u32 i) { return lanes_[group.first + i]; }

  void threadgroup_barrier(u32 flags, u32 site);
  void order_simdgroup(Simdgroup& group, u32 flags);
  u64 threadgroup_array(u32 key, u64 bytes, u32 align, u32 element);
  char* access(u64 address, u32 bytes, u32 align, Access access, u32 site);

  // `message` is a sentence about what the thread does: the running one, or another one of its
  // threadgroup.
  void find(const char* kind, u32 site, const std::string& message) {
    find(kind, site, message, lane_->thread, context.group);
  }
  void find(const char* kind, u32 site, const std::string& message, const Thread& thread,
            const u32* group);
  std::string where(u32 site) const;

  Context context{};

 private:
  static void enter();  // a fiber's start
  void finish();        // and its end

  void start_threadgroup();
  // Waits until the meeting is over, unless the running thread is the last one to come.
  bool arrive(Simdgroup& group, Meeting meeting, u32 site) {
    Lane& me = *lane_;
    me.meeting = meeting;
    me.site = site;
    const u32 rest = group.runnable & ~(1u << me.thread.lane);
    group.runnable = rest;
    if (rest == 0) {
      if (!all_here(group)) abandon();
      return false;
    }
    const u32 later = rest & ~((2u << me.thread.lane) - 1);
    Lane& next = lanes_[group.first + static_cast<u32>(__builtin_ctz(later ? later : rest))];
    lane_ = &next;
    context.thread = &next.thread;
    context.order.stamp = (context.order.stamp & ~kThreadMask) | next.thread.index;
    switch_fiber(me.fiber, next.fiber);
    return true;
  }
  void resume(u32 index);                 // a lane of any simdgroup
  bool all_here(const Simdgroup& group);  // else it says so
  void leave_simdgroup();                 // it can run no further: another one, or all are there
  void release(u32 flags);                // past a threadgroup barrier
  [[noreturn]] void abandon();            // this threadgroup
  void set_order();
  Order device_order() const;
  u32 device_group() const;

  // A store that another thread of the threadgroup made too: a race unless both said the same.
  struct Repeated {
    const char* data = nullptr;
    u32 bytes = 0, site = 0;
    char before[64];
    std::string message;
    Thread thread{};
    u32 group[3]{};
  };
  void judge_repeated();
  char* device_access(int buffer, u64 offset, u32 bytes, bool store, u32 site);
  char* threadgroup_access(Region& region, u64 offset, u32 bytes, bool store, u32 site);
  char* nothing(u64 address, u32 bytes, bool store);  // in the place of what may not be touched
  std::string describe(u64 address) const;
  std::string describe_thread(u32 stamp) const;

  const Kernel* kernel_ = nullptr;
  Size group_size_;
  u32 threads_ = 0;
  Stacks stacks_;
  std::unique_ptr<Lane[]> lanes_;
  std::unique_ptr<Simdgroup[]> simdgroups_;
  Lane* lane_ = nullptr;
  Simdgroup* simdgroup_ = nullptr;
  Fiber outside_;
  u32 clock_ = 1;         // of memory, in this threadgroup
  u32 device_epoch_ = 0;  // Order::epoch of device memory

  struct Array {
    u32 key;
    u64 bytes;
  };
  std::vector<Array> arrays_;  // of this threadgroup
  u64 threadgroup_bytes_ = 0;
  u64 most_threadgroup_bytes_ = 0;
  u64 cells_used_ = 0;
  std::unique_ptr<char[]> memory_;  // threadgroup memory, aligned
  std::unique_ptr<Cell[]> cells_;
  std::string error_;  // of the host: ends the run

  std::vector<Buffer> buffers_;
  std::vector<bool> bound_;
  DeviceMemory device_;
  std::unique_ptr<char[]> scratch_;
  size_t scratch_bytes_ = 0;
  Repeated repeated_;
  Findings findings_;
};

// The one of this OS thread.
extern thread_local Executor* current_executor __attribute__((tls_model("initial-exec")));

}  // namespace softmetal

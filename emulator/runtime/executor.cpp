#include "executor.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "kernel.h"

extern "C" {
__thread softmetal::Context* softmetal_context
    __attribute__((tls_model("initial-exec"), visibility("default"))) = nullptr;
}

namespace softmetal {

thread_local Executor* current_executor = nullptr;  // initial-exec, as declared: one load

namespace {

constexpr u32 kMaxClock = (1u << (32 - kThreadBits)) - 2;

u32 as_stamp(u32 clock) { return clock << kThreadBits; }

const char* name_of(Meeting meeting) {
  switch (meeting) {
    case Meeting::ThreadgroupBarrier:
      return "threadgroup_barrier";
    case Meeting::SimdgroupBarrier:
      return "simdgroup_barrier";
    case Meeting::Shuffle:
      return "a shuffle";
    case Meeting::Reduction:
      return "a simd reduction";
    case Meeting::Scan:
      return "a simd prefix sum";
    case Meeting::Ballot:
      return "simd_ballot";
    case Meeting::Multiply:
      return "a simdgroup_matrix multiply";
    case Meeting::Matrix:
      return "a simdgroup_matrix load or store";
    case Meeting::None:
      break;
  }
  return "nothing";
}

std::string lane_list(u32 bits) {
  std::string text;
  for (int i = 0; i < kLanes; ++i) {
    if (!(bits >> i & 1)) continue;
    int last = i;
    while (last + 1 < kLanes && (bits >> (last + 1) & 1)) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(i);
    if (last > i) text += "-" + std::to_string(last);
    i = last;
  }
  return text;
}

// "lane 5 has", "lanes 0-3, 7 have"
std::string lanes_that(u32 bits, const char* one, const char* several) {
  const bool is_one = (bits & (bits - 1)) == 0;
  return (is_one ? "lane " : "lanes ") + lane_list(bits) + " " + (is_one ? one : several);
}

}  // namespace

Executor::Executor()
    : lanes_(new Lane[kMaxThreads]), simdgroups_(new Simdgroup[kSimdgroups]),
      memory_(new char[kMaxThreadgroupBytes + 64]), cells_(new Cell[kMaxThreadgroupBytes]) {}

void Executor::run(const Kernel& kernel, Size grid, Size group,
                   const std::map<int, Buffer>& buffers, Counters& counters,
                   std::vector<Finding>& findings) {
  kernel_ = &kernel;
  group_size_ = group;
  threads_ = static_cast<u32>(group.x * group.y * group.z);
  stacks_.reserve(static_cast<int>(threads_));
  error_.clear();
  findings_.take();  // of a run that was refused half-way
  most_threadgroup_bytes_ = 0;

  context = Context{};
  const size_t sizes[2][3] = {{grid.x, grid.y, grid.z}, {group.x, group.y, group.z}};
  for (int i = 0; i < 3; ++i) {
    context.groups[i] = static_cast<u32>(sizes[0][i]);
    context.threads_per_group[i] = static_cast<u32>(sizes[1][i]);
  }
  context.simdgroups = (threads_ + kLanes - 1) / kLanes;
  device_.bind(buffers);
  buffers_.assign(kMaxBuffers, Buffer{});
  bound_.assign(kMaxBuffers, false);
  for (const auto& [index, buffer] : buffers) {
    const u32 number = kFirstDeviceRegion + index;
    Region& region = context.regions[number];
    region.start = (u64{number} << kTagShift) + kBias;
    region.bytes = buffer.before + buffer.bytes;
    region.data = static_cast<char*>(buffer.data) - buffer.before;
    region.tracked = buffer.writable || device_.tracked(index);
    context.buffers[index] = region.start + buffer.before;
    buffers_[index] = buffer;
    bound_[index] = true;
  }

  softmetal_context = &context;
  Executor* outer = std::exchange(current_executor, this);
  for (u32 z = 0; z < context.groups[2] && error_.empty(); ++z) {
    for (u32 y = 0; y < context.groups[1] && error_.empty(); ++y) {
      for (u32 x = 0; x < context.groups[0] && error_.empty(); ++x) {
        context.group[0] = x, context.group[1] = y, context.group[2] = z;
        start_threadgroup();
      }
    }
  }
  judge_repeated();
  current_executor = outer;
  softmetal_context = nullptr;
  device_.clear();
  if (!error_.empty()) throw std::invalid_argument(error_);

  const Counts& c = context.counts;
  counters = Counters{};
  counters.dispatches = 1;
  counters.threadgroups = grid.x * grid.y * grid.z;
  counters.threads = counters.threadgroups * threads_;
  counters.multiplies = c.multiplies;
  counters.device_read_bytes = c.device_read_bytes;
  counters.device_write_bytes = c.device_write_bytes;
  counters.constant_read_bytes = c.constant_read_bytes;
  counters.threadgroup_read_bytes = c.threadgroup_read_bytes;
  counters.threadgroup_write_bytes = c.threadgroup_write_bytes;
  counters.threadgroup_barriers = c.threadgroup_barriers;
  counters.simdgroup_barriers = c.simdgroup_barriers;
  counters.shuffles = c.shuffles;
  counters.reductions = c.reductions;
  counters.exp2 = c.exp2;
  counters.threadgroup_memory_bytes = most_threadgroup_bytes_;
  findings = findings_.take();
}

void Executor::start_threadgroup() {
  clock_ = 1;
  threadgroup_bytes_ = cells_used_ = 0;
  for (size_t i = 0; i < arrays_.size(); ++i) {
    context.regions[kFirstThreadgroupRegion + i] = Region{};
  }
  arrays_.clear();
  context.order = {0, as_stamp(1), as_stamp(1)};
  device_epoch_ = as_stamp(1);
  for (u32 i = 0; i < context.simdgroups; ++i) {
    Simdgroup& group = simdgroups_[i];
    group.first = i * kLanes;
    const u32 lanes = threads_ - group.first;
    group.exists = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
    group.live = group.runnable = group.exists;
    group.epoch = group.device_epoch = as_stamp(1);
  }
  for (u32 i = 0; i < threads_; ++i) {
    Lane& lane = lanes_[i];
    lane.thread.position[0] = static_cast<u32>(i % group_size_.x);
    lane.thread.position[1] = static_cast<u32>(i / group_size_.x % group_size_.y);
    lane.thread.position[2] = static_cast<u32>(i / (group_size_.x * group_size_.y));
    lane.thread.index = i;
    lane.thread.lane = i % kLanes;
    lane.thread.simdgroup = i / kLanes;
    lane.meeting = Meeting::None;
    stacks_.start(lane.fiber, static_cast<int>(i), &Executor::enter);
  }
  lane_ = &lanes_[0];
  simdgroup_ = &simdgroups_[0];
  context.thread = &lane_->thread;
  set_order();
  switch_fiber(outside_, lane_->fiber);
}

void Executor::enter() {
  current_executor->kernel_->entry().run();
  current_executor->finish();
}

void Executor::set_order() {
  context.order.stamp = as_stamp(clock_) | lane_->thread.index;
  context.order.simdgroup_epoch = simdgroup_->epoch;
}

Order Executor::device_order() const {
  return {context.order.stamp, device_epoch_, simdgroup_->device_epoch};
}

void Executor::resume(u32 index) {
  Lane& from = *lane_;
  lane_ = &lanes_[index];
  simdgroup_ = &simdgroups_[index / kLanes];
  context.thread = &lane_->thread;
  set_order();
  switch_fiber(from.fiber, lane_->fiber);
}

bool Executor::all_here(const Simdgroup& group) {
  bool same = group.live == group.exists;
  for (u32 bits = group.live; bits; bits &= bits - 1) {
    const Lane& other = lanes_[group.first + static_cast<u32>(__builtin_ctz(bits))];
    same = same && other.meeting == lane_->meeting && other.site == lane_->site;
  }
  if (same) return true;
  // Who waits where.
  std::string text =
      "the lanes of simdgroup " + std::to_string(group.first / kLanes) + " do not meet: ";
  u32 rest = group.live;
  const char* separator = "";
  bool barrier = false;
  while (rest) {
    const Lane& first = lanes_[group.first + static_cast<u32>(__builtin_ctz(rest))];
    u32 with = 0;
    for (u32 bits = rest; bits; bits &= bits - 1) {
      const int i = __builtin_ctz(bits);
      const Lane& other = lanes_[group.first + static_cast<u32>(i)];
      if (other.meeting == first.meeting && other.site == first.site) with |= 1u << i;
    }
    rest &= ~with;
    barrier = barrier || first.meeting == Meeting::ThreadgroupBarrier;
    text += separator + lanes_that(with, "waits", "wait") + " in " + name_of(first.meeting) + " (" +
            where(first.site) + ")";
    separator = ", ";
  }
  const u32 returned = group.exists & ~group.live;
  if (returned) text += separator + lanes_that(returned, "has", "have") + " returned";
  find(returned ? "early-return" : barrier ? "barrier-mismatch" : "divergent", lane_->site, text);
  return false;
}

void Executor::threadgroup_barrier(u32 flags, u32 site) {
  lane_->value = flags;
  if (!arrive(*simdgroup_, Meeting::ThreadgroupBarrier, site)) leave_simdgroup();
}

void Executor::leave_simdgroup() {
  for (u32 step = 1; step < context.simdgroups; ++step) {
    const u32 i = (lane_->thread.simdgroup + step) % context.simdgroups;
    if (simdgroups_[i].runnable) {
      resume(simdgroups_[i].first + static_cast<u32>(__builtin_ctz(simdgroups_[i].runnable)));
      return;
    }
  }
  // All simdgroups wait at a barrier, or have returned.
  const Lane* waiting = nullptr;
  u32 returned = 0;
  for (u32 i = 0; i < context.simdgroups; ++i) {
    const Simdgroup& group = simdgroups_[i];
    if (group.live == 0) {
      ++returned;
      continue;
    }
    const Lane& first = lanes_[group.first + static_cast<u32>(__builtin_ctz(group.live))];
    if (waiting && waiting->site != first.site) {
      find("barrier-mismatch", first.site,
           "simdgroup " + std::to_string(waiting->thread.simdgroup) +
               " waits in threadgroup_barrier at " + where(waiting->site) + ", simdgroup " +
               std::to_string(i) + " at " + where(first.site));
      abandon();
    }
    waiting = &first;
  }
  if (waiting == nullptr) {  // the end of the threadgroup
    switch_fiber(lane_->fiber, outside_);
    return;
  }
  if (returned) {
    find("early-return", waiting->site,
         std::to_string(returned) + (returned == 1 ? " simdgroup has" : " simdgroups have") +
             " returned, and simdgroup " + std::to_string(waiting->thread.simdgroup) +
             " waits in threadgroup_barrier");
    abandon();
  }
  release(static_cast<u32>(waiting->value));
}

void Executor::release(u32 flags) {
  ++context.counts.threadgroup_barriers;
  if (flags) ++clock_;
  for (u32 i = 0; i < context.simdgroups; ++i) {
    Simdgroup& group = simdgroups_[i];
    group.runnable = group.live;
    if (flags & 2) group.epoch = as_stamp(clock_);
    if (flags & 1) group.device_epoch = as_stamp(clock_);
  }
  if (flags & 2) context.order.epoch = as_stamp(clock_);
  if (flags & 1) device_epoch_ = as_stamp(clock_);
  if (clock_ >= kMaxClock) {
    error_ = "a threadgroup passed more than " + std::to_string(kMaxClock) + " barriers";
    abandon();
  }
  set_order();
}

void Executor::order_simdgroup(Simdgroup& group, u32 flags) {
  ++context.counts.simdgroup_barriers;
  if (flags) ++clock_;
  if (flags & 2) group.epoch = as_stamp(clock_);
  if (flags & 1) group.device_epoch = as_stamp(clock_);
  if (clock_ >= kMaxClock) {
    error_ = "a threadgroup passed more than " + std::to_string(kMaxClock) + " barriers";
    abandon();
  }
  set_order();
}

void Executor::finish() {
  Simdgroup& group = *simdgroup_;
  const u32 bit = 1u << lane_->thread.lane;
  group.live &= ~bit;
  group.runnable &= ~bit;
  if (group.runnable) {
    resume(group.first + static_cast<u32>(__builtin_ctz(group.runnable)));
  } else if (group.live) {
    lane_ = &lanes_[group.first + static_cast<u32>(__builtin_ctz(group.live))];
    all_here(group);
    abandon();
  } else {
    leave_simdgroup();
  }
  __builtin_unreachable();
}

void Executor::abandon() {
  switch_fiber(lane_->fiber, outside_);
  __builtin_unreachable();
}

u64 Executor::threadgroup_array(u32 key, u64 bytes, u32 align, u32 element) {
  for (size_t i = 0; i < arrays_.size(); ++i) {
    if (arrays_[i].key == key) return context.regions[kFirstThreadgroupRegion + i].start;
  }
  if (align < 16) align = 16;
  const u64 offset = (threadgroup_bytes_ + align - 1) / align * align;
  if (offset + bytes > kMaxThreadgroupBytes || arrays_.size() == kMaxThreadgroupArrays) {
    error_ = "kernel " + kernel_->name() + " takes " + std::to_string(offset + bytes) +
             " bytes of threadgroup memory; the device has " + std::to_string(kMaxThreadgroupBytes);
    abandon();
  }
  const u32 number = kFirstThreadgroupRegion + static_cast<u32>(arrays_.size());
  arrays_.push_back({key, bytes});
  threadgroup_bytes_ = offset + bytes;
  if (threadgroup_bytes_ > most_threadgroup_bytes_) most_threadgroup_bytes_ = threadgroup_bytes_;
  const auto base = (reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63};
  Region& region = context.regions[number];
  region.start = (u64{number} << kTagShift) + kBias;
  region.bytes = bytes;
  region.data = reinterpret_cast<char*>(base) + offset;
  region.element_shift = static_cast<u32>(__builtin_ctz(element));
  region.inner = element - 1;
  region.cells = cells_.get() + cells_used_;
  std::memset(region.data, 0xff, bytes);
  const u64 elements = (bytes + element - 1) >> region.element_shift;
  std::memset(region.cells, 0, elements * sizeof(Cell));
  cells_used_ += elements;
  return region.start;
}

std::string Executor::where(u32 site) const { return kernel_->where(site); }

void Executor::find(const char* kind, u32 site, const std::string& message, const Thread& thread,
                    const u32* group) {
  findings_.add(kind, site, [&] {
    Finding finding;
    finding.kernel = kernel_->name();
    finding.where = where(site);
    finding.message = message;
    finding.threadgroup = {group[0], group[1], group[2]};
    const u32* p = thread.position;
    finding.thread = {p[0], p[1], p[2]};
    return finding;
  });
}

}  // namespace softmetal

// Accesses that the checks in kernels hand over: wrong ones, and all of writable device memory.
#include <algorithm>
#include <cstring>

#include "executor.h"
#include "kernel.h"

namespace softmetal {

namespace {

bool is_store(Access access) {
  return access == Access::Store || access == Access::DeviceStore ||
         access == Access::ConstantStore;
}

bool is_threadgroup(Access access) { return access == Access::Store || access == Access::Load; }

std::string bytes_text(u32 bytes) {
  return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

}  // namespace

char* Executor::nothing(u64, u32 bytes, bool store) {
  if (scratch_bytes_ < bytes) {
    scratch_bytes_ = std::max<size_t>(bytes, 256);
    scratch_.reset(new char[scratch_bytes_]);
  }
  if (!store) std::memset(scratch_.get(), 0xff, bytes);
  return scratch_.get();
}

std::string Executor::describe(u64 address) const {
  const u32 number = static_cast<u32>(address >> kTagShift);
  const Region& region = context.regions[number];
  auto offset = static_cast<long long>(address - region.start);
  u64 bytes = region.bytes;
  std::string name;
  if (number >= kFirstThreadgroupRegion && number < kFirstThreadgroupRegion + arrays_.size()) {
    name = "threadgroup array " + std::to_string(number - kFirstThreadgroupRegion);
  } else if (number >= kFirstDeviceRegion && number < kFirstDeviceRegion + kMaxBuffers &&
             bound_[number - kFirstDeviceRegion]) {
    name = "buffer " + std::to_string(number - kFirstDeviceRegion) +
           kernel_->parameter_name(number - kFirstDeviceRegion);
    offset -= static_cast<long long>(buffers_[number - kFirstDeviceRegion].before);
    bytes = buffers_[number - kFirstDeviceRegion].bytes;
  } else {
    return "an address that is in no buffer";
  }
  return "byte " + std::to_string(offset) + " of " + name + ", which has " + std::to_string(bytes);
}

std::string Executor::describe_thread(u32 stamp) const {
  const u32 thread = stamp & kThreadMask;
  if (thread < kSeveralOfSimdgroup) {
    return "thread " + std::to_string(thread) + " (lane " + std::to_string(thread % kLanes) +
           " of simdgroup " + std::to_string(thread / kLanes) + ")";
  }
  if (thread == kSeveral) return "threads of several simdgroups";
  return "several threads of simdgroup " + std::to_string(thread - kSeveralOfSimdgroup);
}

char* Executor::access(u64 address, u32 bytes, u32 align, Access access, u32 site) {
  const bool store = is_store(access);
  const u32 number = static_cast<u32>(address >> kTagShift);
  const Region& region = context.regions[number];
  const u64 offset = address - region.start;
  const char* verb = store ? "writes " : "reads ";
  if (region.bytes == 0 || offset > region.bytes || region.bytes - offset < bytes ||
      is_threadgroup(access) != (number >= kFirstThreadgroupRegion)) {
    find("out-of-bounds", site, verb + bytes_text(bytes) + " at " + describe(address));
    return nothing(address, bytes, store);
  }
  if (address & (align - 1)) {
    find("misaligned", site,
         verb + bytes_text(bytes) + " that must be aligned to " + std::to_string(align) + ", at " +
             describe(address));
  }
  if (is_threadgroup(access)) {
    return threadgroup_access(context.regions[number], offset, bytes, store, site);
  }
  const int buffer = static_cast<int>(number) - kFirstDeviceRegion;
  if (store && (access == Access::ConstantStore || !buffers_[buffer].writable)) {
    find("read-only", site,
         "writes " + bytes_text(bytes) + " at " + describe(address) +
             (access == Access::ConstantStore ? "; constant memory is read-only"
                                              : "; it is bound as an input"));
    return nothing(address, bytes, store);
  }
  (store                            ? context.counts.device_write_bytes
   : access == Access::ConstantLoad ? context.counts.constant_read_bytes
                                    : context.counts.device_read_bytes) += bytes;
  return device_access(buffer, offset, bytes, store, site);
}

u32 Executor::device_group() const {
  return 1 + context.group[0] +
         context.groups[0] * (context.group[1] + context.groups[1] * context.group[2]);
}

char* Executor::device_access(int buffer, u64 offset, u32 bytes, bool store, u32 site) {
  const Region& region = context.regions[kFirstDeviceRegion + buffer];
  char* data = region.data + offset;
  judge_repeated();
  if (!device_.tracked(buffer)) return data;
  using Conflict = DeviceMemory::Conflict;
  const auto result = device_.access(buffer, reinterpret_cast<uintptr_t>(data), bytes, store,
                                     device_group(), device_order());
  if (result.conflict == Conflict::None) return data;
  const std::string what =
      (store ? "writes " : "reads ") + bytes_text(bytes) + " at " + describe(region.start + offset);
  if (result.conflict == Conflict::Uninitialised) {
    find("uninitialised", site, what + ": nobody has written there");
    return data;
  }
  const bool wrote =
      result.conflict == Conflict::Writer || result.conflict == Conflict::WriterOfOtherGroup;
  std::string who;
  if (result.conflict == Conflict::Writer || result.conflict == Conflict::Reader) {
    who = describe_thread(result.stamp) + " of the same threadgroup, with no barrier in between";
  } else if (result.group == kSeveralGroups) {
    who = "several threadgroups";
  } else {
    const u32 group = result.group - 1, x = context.groups[0], y = context.groups[1];
    who = describe_thread(result.stamp) + " of threadgroup (" + std::to_string(group % x) + ", " +
          std::to_string(group / x % y) + ", " + std::to_string(group / x / y) + ")";
  }
  const std::string message = what + ", which was " + (wrote ? "written" : "read") + " by " + who;
  if (store && result.conflict == Conflict::Writer && bytes <= sizeof(Repeated::before)) {
    repeated_.data = data;
    repeated_.bytes = bytes;
    repeated_.site = site;
    repeated_.message = message;
    repeated_.thread = lane_->thread;
    std::copy_n(context.group, 3, repeated_.group);
    std::memcpy(repeated_.before, data, bytes);
  } else {
    find("device-race", site, message);
  }
  return data;
}

// After the store, so at the next access or at the end.
void Executor::judge_repeated() {
  if (repeated_.data && std::memcmp(repeated_.data, repeated_.before, repeated_.bytes) != 0) {
    find("device-race", repeated_.site, repeated_.message + ", which wrote something else",
         repeated_.thread, repeated_.group);
  }
  repeated_.data = nullptr;
}

char* Executor::threadgroup_access(Region& region, u64 offset, u32 bytes, bool store, u32 site) {
  const u64 first = offset >> region.element_shift;
  const u64 last = (offset + bytes - 1) >> region.element_shift;
  const Order& now = context.order;
  bool told = false;
  for (u64 i = first; i <= last; ++i) {
    Cell& cell = region.cells[i];
    if (!told) {
      const bool writer = unordered(cell.writer, now);
      const bool reader = store && unordered(cell.reader, now);
      told = writer || reader || (!store && cell.writer == 0);
      const std::string what = told ? (store ? "writes " : "reads ") + bytes_text(bytes) + " at " +
                                          describe(region.start + offset)
                                    : "";
      if (writer || reader) {
        find("race", site,
             what + ", which was " + (writer ? "written" : "read") + " by " +
                 describe_thread(writer ? cell.writer : cell.reader) +
                 " with no barrier in between");
      } else if (told) {
        find("uninitialised", site, what + ": nobody has written there");
      }
    }
    if (store) {
      cell = {now.stamp, 0};
    } else {
      cell.reader = with_reader(cell.reader, now);
    }
  }
  (store ? context.counts.threadgroup_write_bytes : context.counts.threadgroup_read_bytes) += bytes;
  return region.data + offset;
}

}  // namespace softmetal

#include "poison.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "softmetal.h"

namespace softmetal {

namespace {

struct Registry {
  std::mutex mutex;
  std::map<uintptr_t, std::shared_ptr<Poisoned>> by_start;  // disjoint
};

Registry& registry() {
  static Registry r;
  return r;
}

std::vector<std::shared_ptr<Poisoned>> overlapping(Registry& r, uintptr_t start, size_t bytes) {
  std::vector<std::shared_ptr<Poisoned>> found;
  auto at = r.by_start.upper_bound(start);
  if (at != r.by_start.begin()) --at;
  for (; at != r.by_start.end() && at->first < start + bytes; ++at) {
    if (at->second->end() > start) found.push_back(at->second);
  }
  return found;
}

void forget_locked(Registry& r, uintptr_t start, size_t bytes) {
  for (const auto& range : overlapping(r, start, bytes)) {
    const uintptr_t low = std::max(start, range->start),
                    high = std::min(start + bytes, range->end());
    std::fill(range->written.begin() + (low - range->start),
              range->written.begin() + (high - range->start), 1);
    if (low == range->start && high == range->end()) r.by_start.erase(range->start);
  }
}

}  // namespace

std::vector<std::shared_ptr<Poisoned>> poisoned(const void* data, size_t bytes) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return overlapping(r, reinterpret_cast<uintptr_t>(data), bytes);
}

void forget(void* data, size_t bytes) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  forget_locked(r, reinterpret_cast<uintptr_t>(data), bytes);
}

void poison(void* data, size_t bytes) {
  if (bytes == 0) return;
  std::memset(data, 0xff, bytes);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const auto start = reinterpret_cast<uintptr_t>(data);
  // What of older ranges lies outside the new one stays as it is.
  for (const auto& old : overlapping(r, start, bytes)) {
    r.by_start.erase(old->start);
    const auto keep = [&](uintptr_t low, uintptr_t high) {
      if (low >= high) return;
      auto part = std::make_shared<Poisoned>();
      part->start = low;
      part->written.assign(old->written.begin() + (low - old->start),
                           old->written.begin() + (high - old->start));
      r.by_start[low] = part;
    };
    keep(old->start, start);
    keep(start + bytes, old->end());
  }
  auto range = std::make_shared<Poisoned>();
  range->start = start;
  range->written.assign(bytes, 0);
  r.by_start[start] = range;
}

}  // namespace softmetal
